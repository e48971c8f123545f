// Detect objects over gRPC with Go: go run infer.go IMAGE [HOST:PORT]
//
// Run it in a module named example that has the code of kserve.proto:
//
//	go mod init example
//	protoc --go_out=. --go-grpc_out=. kserve.proto
//	go mod tidy
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"time"

	"example/inference"
	"google.golang.org/grpc"
)

func tensor(name, datatype string, contents *inference.InferTensorContents) *inference.ModelInferRequest_InferInputTensor {
	return &inference.ModelInferRequest_InferInputTensor{
		Name: name, Datatype: datatype, Shape: []int64{1}, Contents: contents,
	}
}

func text(value []byte) *inference.InferTensorContents {
	return &inference.InferTensorContents{BytesContents: [][]byte{value}}
}

func main() {
	address := "127.0.0.1:8001"
	if len(os.Args) > 2 {
		address = os.Args[2]
	}
	image, err := os.ReadFile(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	connection, err := grpc.Dial(address, grpc.WithInsecure())
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	response, err := inference.NewGRPCInferenceServiceClient(connection).ModelInfer(ctx, &inference.ModelInferRequest{
		ModelName: "florence2_ensemble",
		Inputs: []*inference.ModelInferRequest_InferInputTensor{
			tensor("IMAGE", "BYTES", text(image)),
			tensor("TASK", "BYTES", text([]byte("<OD>"))),
			tensor("NUM_BEAMS", "INT32", &inference.InferTensorContents{IntContents: []int32{1}}),
		},
		Outputs: []*inference.ModelInferRequest_InferRequestedOutputTensor{{Name: "RESULT"}},
	})
	if err != nil {
		log.Fatal(err)
	}
	var result map[string]struct {
		Bboxes [][]float64
		Labels []string
	}
	if err := json.Unmarshal(response.RawOutputContents[0][4:], &result); err != nil { // 4 bytes of length come first
		log.Fatal(err)
	}
	for place, label := range result["<OD>"].Labels {
		fmt.Println(label, result["<OD>"].Bboxes[place])
	}
}
