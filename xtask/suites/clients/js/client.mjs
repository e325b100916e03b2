// Clients whose only credentials are those that their SDK finds, for `cargo xtask clients`.
//
//   node client.mjs NAME COUNT    for each line of its input, each client signs one request

import { createInterface } from "node:readline";
import { createRequire } from "node:module";

// Beside the modules that were installed, which are elsewhere than this file.
const require = createRequire(process.env.KIAM_CLIENTS_MODULES + "/");
const endpoint = process.env.KIAM_STS_URL;
const region = process.env.AWS_REGION;

// Each: how it forgets only its credentials, and how it signs a request.
const makers = {
  "js-v2"() {
    process.env.AWS_SDK_JS_SUPPRESS_MAINTENANCE_MODE_MESSAGE = "1";
    const AWS = require("aws-sdk");
    // Each client has a chain of its own: the SDK's default is one for the whole process.
    const credentialProvider = new AWS.CredentialProviderChain();
    const client = new AWS.STS({ endpoint, region, credentialProvider, credentials: null });
    return {
      forget() {
        client.config.credentials.expired = true;
      },
      sign: () => client.getCallerIdentity().promise(),
    };
  },
  "js-v3"() {
    const { STSClient, GetCallerIdentityCommand } = require("@aws-sdk/client-sts");
    const client = new STSClient({ endpoint, region });
    return {
      forget: () => client.config.credentials({ forceRefresh: true }),
      sign: () => client.send(new GetCallerIdentityCommand({})),
    };
  },
  "aws-crt-js"() {
    const { auth, http, io } = require("aws-crt");
    let provider = auth.AwsCredentialsProvider.newDefault();
    return {
      // Only a new provider forgets them.
      forget() {
        provider = auth.AwsCredentialsProvider.newDefault();
      },
      async sign() {
        const url = new URL(endpoint);
        const headers = new http.HttpHeaders([["host", url.host]]);
        const path = "/?Action=GetCallerIdentity&Version=2011-06-15";
        const request = new http.HttpRequest("GET", path, headers);
        await auth.aws_sign_request(request, {
          algorithm: auth.AwsSigningAlgorithm.SigV4,
          signature_type: auth.AwsSignatureType.HttpRequestViaHeaders,
          provider,
          region,
          service: "sts",
          date: new Date(),
        });
        const signed = Object.fromEntries(headers._flatten().filter(([name]) => name !== "host"));
        const answer = await fetch(endpoint + path, { headers: signed });
        if (!answer.ok) {
          throw new Error(await answer.text());
        }
      },
    };
  },
};

const [name, count] = process.argv.slice(2);
const clients = Array.from({ length: Number(count) }, makers[name]);
let turn = 0;
for await (const _ of createInterface({ input: process.stdin })) {
  const forget = turn++ > 0;
  const all = clients.map(async (client) => {
    if (forget) {
      await client.forget();
    }
    await client.sign();
  });
  const ends = await Promise.allSettled(all);
  const failed = ends.filter(({ status }) => status === "rejected");
  const first = failed.length > 0 ? String(failed[0].reason).replace(/\s+/g, " ") : "";
  console.log(`done ${ends.length - failed.length} ${first}`);
}
process.exit(0);
