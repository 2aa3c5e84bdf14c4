"""Says whether exported files are what their manifest says, and what changed, to the tensor. Exit code 1 if any did.

  python tools/verify.py --folder=out/run --key=public.pem
  orbit-kd verify out/run

Without --key a changed file is found, but not one that was changed together with its manifest.
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import flags

from orbit_kd_tools.common import FLAGS, required, run

flags.DEFINE_string("folder", None, "Folder with a manifest.json: --output of tools/export.py, a workdir.")
flags.DEFINE_string("key", None, "Public key (PEM) of who signed; the manifest must be signed with its private half.")


def main() -> None:
    required("folder")

    from orbit_kd.flight.manifest import SIGNATURES, changes, read_manifest
    from orbit_kd.flight.signature import check_signature

    files = read_manifest(FLAGS.folder)["files"]
    found = changes(FLAGS.folder)
    print(*found, sep="\n", end="\n" if found else "")
    signed = any(Path(FLAGS.folder, name).is_file() for name in SIGNATURES)
    if FLAGS.key:
        check_signature(FLAGS.folder, FLAGS.key)
    says = "signature by this key" if FLAGS.key else "signature not checked (--key)" if signed else "not signed"
    if found:
        sys.exit(f"{len({change.file for change in found})} of {len(files)} files changed; {says}")
    print(f"{len(files)} files are as the manifest says; {says}")


if __name__ == "__main__":
    run(main, tensorflow=False, argument="folder")
