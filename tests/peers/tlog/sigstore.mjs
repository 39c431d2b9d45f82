// Checks checkpoints and inclusion proofs of a Sealgate log with the verifier that Sigstore's clients use for theirs
// (npm @sigstore/verify). It offers its two steps only as a part of verifying Sigstore bundles, so they are taken from
// inside of the package, whose version is pinned. A case is read from standard input as JSON; exit status 0: all hold.
import { createPublicKey } from "node:crypto";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";

const require = createRequire(import.meta.url);
const inside = join(dirname(require.resolve("@sigstore/verify")), "tlog");
const { verifyCheckpoint } = require(join(inside, "checkpoint.js"));
const { verifyMerkleInclusion } = require(join(inside, "merkle.js"));

const bytes = (text) => Buffer.from(text, "base64");
const given = JSON.parse(readFileSync(0, "utf8"));
const [name, keyId, ...encoded] = given.VKey.split("+");
const raw = bytes(encoded.join("+")).subarray(1);
const log = {
  logID: Buffer.from(keyId, "hex"),
  baseURL: name,
  publicKey: createPublicKey({ key: { kty: "OKP", crv: "Ed25519", x: raw.toString("base64url") }, format: "jwk" }),
};

try {
  for (const receipt of given.Receipts.map(bytes)) {
    const [head, ...rest] = receipt.toString("utf8").split("\n\n");
    const [magic, extra, index, ...hashes] = head.split("\n");
    if (magic !== "c2sp.org/tlog-proof@v1") throw new Error("not a tlog-proof");
    const entry = {
      canonicalizedBody: bytes(extra.slice("extra ".length)),
      inclusionProof: {
        logIndex: index.slice("index ".length),
        hashes: hashes.map(bytes),
        checkpoint: { envelope: rest.join("\n\n") },
      },
    };
    verifyMerkleInclusion(entry, verifyCheckpoint(entry, [log]));
  }
  const published = { inclusionProof: { checkpoint: { envelope: bytes(given.Checkpoint).toString("utf8") } } };
  const { logSize } = verifyCheckpoint(published, [log]);
  console.log(`ok: ${logSize} records, ${given.Receipts.length} receipts`);
} catch (error) {
  console.log(error.message);
  process.exitCode = 1;
}
