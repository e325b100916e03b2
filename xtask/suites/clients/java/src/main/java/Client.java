// Clients that know nothing of credentials but what their SDK finds, for `cargo xtask clients`.
//
//   java Client NAME COUNT    for each line of its input, each client signs one request

import com.amazonaws.auth.DefaultAWSCredentialsProviderChain;
import com.amazonaws.client.builder.AwsClientBuilder.EndpointConfiguration;
import com.amazonaws.services.securitytoken.AWSSecurityTokenServiceClientBuilder;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.net.URI;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.atomic.AtomicReference;
import software.amazon.awssdk.auth.credentials.AwsCredentialsProvider;
import software.amazon.awssdk.auth.credentials.AwsSessionCredentials;
import software.amazon.awssdk.auth.credentials.DefaultCredentialsProvider;
import software.amazon.awssdk.auth.credentials.StaticCredentialsProvider;
import software.amazon.awssdk.core.document.Document;
import software.amazon.awssdk.http.SdkHttpClient;
import software.amazon.awssdk.http.urlconnection.UrlConnectionHttpClient;
import software.amazon.awssdk.imds.Ec2MetadataClient;
import software.amazon.awssdk.regions.Region;
import software.amazon.awssdk.services.sts.StsClient;

public final class Client {
    private static final String ENDPOINT = System.getenv("KIAM_STS_URL");
    private static final String REGION = System.getenv("AWS_REGION");
    private static final String ROLES = "/latest/meta-data/iam/security-credentials/";
    private static final SdkHttpClient HTTP = UrlConnectionHttpClient.create();

    /** Forgets its credentials, though nothing else, and signs a request with new ones. */
    private interface One {
        void sign(boolean forget) throws Exception;
    }

    public static void main(String[] args) throws Exception {
        List<One> clients = new ArrayList<>();
        int count = Integer.parseInt(args[1]);
        for (int made = 0; made < count; made++) {
            clients.add(switch (args[0]) {
                case "java-v1" -> v1();
                case "java-v2" -> v2();
                case "java-v2-metadata" -> metadata();
                default -> throw new IllegalArgumentException(args[0]);
            });
        }
        var pool = Executors.newFixedThreadPool(count);
        var lines = new BufferedReader(new InputStreamReader(System.in));
        for (int turn = 0; lines.readLine() != null; turn++) {
            boolean forget = turn > 0;
            List<Callable<Void>> all = new ArrayList<>();
            for (One client : clients) {
                all.add(() -> {
                    client.sign(forget);
                    return null;
                });
            }
            int good = 0;
            String first = "";
            for (Future<Void> end : pool.invokeAll(all)) {
                try {
                    end.get();
                    good++;
                } catch (ExecutionException failure) {
                    if (first.isEmpty()) {
                        first = chain(failure.getCause());
                    }
                }
            }
            System.out.println("done " + good + " " + first);
        }
        System.exit(0);
    }

    private static String chain(Throwable failure) {
        var text = new StringBuilder();
        for (Throwable part = failure; part != null; part = part.getCause()) {
            text.append(part).append("; ");
        }
        return text.toString().replaceAll("\\s+", " ");
    }

    private static One v1() {
        // The chain's own class has one instance for the whole process; each client has its own here.
        var keys = new DefaultAWSCredentialsProviderChain();
        var service = AWSSecurityTokenServiceClientBuilder.standard()
                .withCredentials(keys)
                .withEndpointConfiguration(new EndpointConfiguration(ENDPOINT, REGION))
                .build();
        return forget -> {
            if (forget) {
                keys.refresh();
            }
            service.getCallerIdentity(
                    new com.amazonaws.services.securitytoken.model.GetCallerIdentityRequest());
        };
    }

    private static StsClient service(AwsCredentialsProvider keys) {
        return StsClient.builder()
                .credentialsProvider(keys)
                .endpointOverride(URI.create(ENDPOINT))
                .region(Region.of(REGION))
                .httpClient(HTTP)
                .build();
    }

    private static One v2() {
        var service = new AtomicReference<StsClient>();
        return forget -> {
            // It has no way to forget but a new provider.
            if (forget || service.get() == null) {
                service.set(service(DefaultCredentialsProvider.builder().build()));
            }
            service.get().getCallerIdentity();
        };
    }

    private static One metadata() {
        Ec2MetadataClient metadata = Ec2MetadataClient.builder().httpClient(HTTP).build();
        return forget -> {
            String role = metadata.get(ROLES).asString();
            Document keys = metadata.get(ROLES + role).asDocument();
            var session = AwsSessionCredentials.create(
                    keys.asMap().get("AccessKeyId").asString(),
                    keys.asMap().get("SecretAccessKey").asString(),
                    keys.asMap().get("Token").asString());
            service(StaticCredentialsProvider.create(session)).getCallerIdentity();
        };
    }
}
