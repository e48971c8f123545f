// Describe an image over HTTP with Java 17 or newer, without packages: java Generate.java IMAGE [HOST:PORT]
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Base64;

public class Generate {
    public static void main(String[] arguments) throws Exception {
        String address = arguments.length > 1 ? arguments[1] : "127.0.0.1:8000";
        String image = Base64.getEncoder().encodeToString(Files.readAllBytes(Path.of(arguments[0])));
        String body = "{\"IMAGE\": \"%s\", \"TASK\": \"<CAPTION>\", \"NUM_BEAMS\": 1}".formatted(image);
        URI endpoint = URI.create("http://" + address + "/v2/models/florence2_ensemble/generate");
        HttpRequest request = HttpRequest.newBuilder(endpoint)
            .header("Content-Type", "application/json")
            .POST(HttpRequest.BodyPublishers.ofString(body))
            .build();
        HttpResponse<String> response = HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString());
        System.out.println(response.body());
        System.exit(response.statusCode() == 200 ? 0 : 1);
    }
}
