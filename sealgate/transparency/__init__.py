"""The log as anybody can check it: records, Merkle tree, signed notes, receipts, the offline verifier. Pure."""
