"""Verify the audit from outside: python3 verify_audit.py KEYS LOG [SEGMENT | ENTRIES | PROOF.json] ...

KEYS is `audit_key.pub` as you got it when the site was set up, LOG the file of checkpoints, the others come
from `cleanup audit export`, the Export of the console and `cleanup audit prove --json`. ENTRIES are some
entries: each is checked by itself, those that follow each other by their links, whole stretches by their
roots. Needs `cryptography`, and nothing of the site.
Exit code 0: all is sound; 1: the line on standard error says what is not.
"""

import hashlib
import itertools
import json
import sys
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

ENTRY, CHECKPOINT, KEY = (b"xnai.audit." + name + b"v1\0" for name in (b"", b"checkpoint.", b"key."))


def need(claim, complaint):
    if not claim:
        sys.exit(f"NOT SOUND: {complaint}")


def sha256(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def spelled(fields, *without):
    kept = {name: value for name, value in fields.items() if name not in without}
    return json.dumps(kept, sort_keys=True, ensure_ascii=True, separators=(",", ":")).encode()


def objects(path):
    """The JSON lines of a file; a line that a crash cut short is none."""
    for line in Path(path).read_bytes().split(b"\n"):
        try:
            yield json.loads(line)
        except ValueError:
            continue


def check_signature(keys, key_id, message, signature, what):
    need(key_id in keys, f"{what}: the key {key_id} is not trusted")
    try:
        keys[key_id].verify(bytes.fromhex(signature), message)
    except (InvalidSignature, ValueError):
        need(False, f"{what}: the signature is wrong")


def read_keys(path):
    """The first key is trusted because you got it; each of the others because an earlier one signed it."""
    keys = {}
    for line in objects(path):
        raw = bytes.fromhex(line["public_key"])
        need(hashlib.sha256(raw).hexdigest()[:16] == line["key_id"], f"key {line['key_id']}: wrong id")
        if keys:
            check_signature(keys, line["previous"], KEY + raw, line["endorsement"], f"key {line['key_id']}")
        keys[line["key_id"]] = Ed25519PublicKey.from_public_bytes(raw)
    return keys


def read_log(path, keys):
    """Checkpoints by number: none is missing, each names the one before it, and is signed."""
    log, seq, before = {}, 0, "00" * 32
    for line in objects(path):
        if line.get("type") != "checkpoint":
            continue
        number, what = line["number"], f"checkpoint {line['number']}"
        need(number == len(log) + 1 and line["first_seq"] == seq + 1 and line["prev_hash"] == before, what)
        own = sha256(CHECKPOINT, spelled(line, "type", "hash", "signature"))
        need(own.hex() == line["hash"], f"{what}: wrong hash")
        check_signature(keys, line["key_id"], CHECKPOINT + own, line["signature"], what)
        log[number], seq, before = line, line["last_seq"], line["hash"]
    return log


def leaf(entry):
    own = sha256(ENTRY, spelled(entry, "hash"))
    need(own.hex() == entry["hash"], f"entry {entry['seq']}: wrong hash")
    return sha256(b"\0", own)


def root(level):
    """RFC 9162: pairs are joined; the odd one out moves up."""
    while len(level) > 1:
        pairs = [sha256(b"\1", *level[at : at + 2]) for at in range(0, len(level) - 1, 2)]
        level = pairs + level[len(pairs) * 2 :]
    return level[0].hex()


def check_entries(entries, log):
    leaves = {entry["seq"]: leaf(entry) for entry in entries}
    for one, following in itertools.pairwise(entries):
        linked = following["seq"] != one["seq"] + 1 or following["prev_hash"] == one["hash"]
        need(linked and following["seq"] > one["seq"], f"entry {following['seq']}: does not follow")
    for number, checkpoint in log.items():
        stretch = [leaves.get(seq) for seq in range(checkpoint["first_seq"], checkpoint["last_seq"] + 1)]
        if None not in stretch:
            need(root(stretch) == checkpoint["merkle_root"], f"checkpoint {number}: another root")
    return len(entries)


def check_segment(path, log):
    checkpoint, *entries = objects(path)
    if "merkle_root" not in checkpoint:
        return check_entries([checkpoint, *entries], log)
    need(log.get(checkpoint["number"]) == checkpoint, f"{path}: its checkpoint is not in the log")
    seqs = list(range(checkpoint["first_seq"], checkpoint["last_seq"] + 1))
    need([entry["seq"] for entry in entries] == seqs, f"{path}: entries are missing, or too many")
    for one, following in itertools.pairwise(entries):
        need(following["prev_hash"] == one["hash"], f"entry {following['seq']}: does not follow")
    need(root([leaf(entry) for entry in entries]) == checkpoint["merkle_root"], f"{path}: another root")
    need(entries[-1]["hash"] == checkpoint["head_hash"], f"{path}: another head")
    return len(entries)


def check_proof(path, log):
    proof = json.loads(Path(path).read_text())
    checkpoint, node, index = proof["checkpoint"], leaf(proof["entry"]), proof["index"]
    need(log.get(checkpoint["number"]) == checkpoint, f"{path}: its checkpoint is not in the log")
    need(proof["entry"]["seq"] == checkpoint["first_seq"] + index, f"{path}: another place")
    last, siblings = (
        checkpoint["last_seq"] - checkpoint["first_seq"],
        [bytes.fromhex(x) for x in proof["path"]],
    )
    while last:
        if index % 2:
            node = sha256(b"\1", siblings.pop(0), node)
        elif index < last:
            node = sha256(b"\1", node, siblings.pop(0))
        index, last = index // 2, last // 2
    need(node.hex() == checkpoint["merkle_root"] and not siblings, f"{path}: another root")
    return 1


def main(keys_path, log_path, *paths):
    log = read_log(log_path, read_keys(keys_path))
    checks = ((check_proof if str(path).endswith(".json") else check_segment, path) for path in paths)
    entries = sum(check(path, log) for check, path in checks)
    sys.stdout.write(f"Sound: {len(log)} checkpoints, {entries} entries.\n")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        need(False, f"a file is not what it should be: {error!r}")
