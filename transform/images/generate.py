"""Makes the Python classes of the .proto files anew: `python -m transform.images.generate`, in the repository's root.

Needs `protoc` (Debian's protobuf-compiler: classes made by an older one run on every newer protobuf runtime) and
`protoc-gen-mypy` (the mypy-protobuf of the development dependencies).
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Write *_pb2.py and *_pb2.pyi beside the .proto files; exits with protoc's code."""
    protos = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "transform/images/proto").glob("*.proto"))
    beside = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{beside}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
    command = ["protoc", "-I.", "--python_out=.", "--mypy_out=quiet:.", *protos]
    sys.exit(subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode)


if __name__ == "__main__":
    main()
