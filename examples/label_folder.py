"""Label a folder of images for training: python label_folder.py FOLDER [URL].

Writes dataset/ for YOLO and dataset.json for COCO. Run it again to resume.
"""

import sys

from florence2_client import label

url = sys.argv[2] if len(sys.argv) > 2 else "grpc://127.0.0.1:8001"
ontology = {"a star": "star", "a triangle": "triangle", "a circle": "circle"}  # phrase to look for: class

dataset = label(
    sys.argv[1], ontology=ontology, min_confidence=0.5, url=url,
    yolo="dataset", coco="dataset.json", out="answers.jsonl",
)  # fmt: skip
for path, detections in dataset.annotations.items():
    print(path, *detections.data.get("class_name", []))
