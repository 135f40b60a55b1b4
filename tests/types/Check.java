// Reads events and writes a request and an ending, with the types that quicktype makes.
//
//   java Check EVENTS REQUESTS ENDINGS
import com.example.handoff.*;
import java.net.URI;
import java.nio.file.*;
import java.util.*;

public class Check {
    public static void main(String[] args) throws Exception {
        for (String line : Files.readAllLines(Path.of(args[0]))) {
            if (line.contains("\"type\":\"handoff.ready\"")) {
                HandoffReadyEventData data = Converter.HandoffReadyEventFromJsonString(line).getData();
                System.out.println("ready " + data.getUserID() + " " + URI.create(data.getURL()).getPath() + " " + data.getReused());
            } else {
                HandoffFailedEventData data = Converter.HandoffFailedEventFromJsonString(line).getData();
                System.out.println("failed " + data.getUserID() + " " + data.getReason().getCode().toValue() + " " + data.getAttempts());
            }
        }

        VerificationRequest request = new VerificationRequest();
        request.setUserID("java-user");
        request.setMetadata(Map.of("plan", "basic"));
        append(args[1], Converter.VerificationRequestToJsonString(request));
        VerificationEnding ending = new VerificationEnding();
        ending.setUserID("java-user");
        append(args[2], Converter.VerificationEndingToJsonString(ending));
    }

    static void append(String file, String line) throws Exception {
        Files.writeString(Path.of(file), line + "\n", StandardOpenOption.APPEND);
    }
}
