"""The generated classes are those of the .proto files beside them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor

from transform.images import proto
from transform.images.proto import files_pb2, memory_pb2, payload_pb2, system_pb2, task_pb2

pytestmark = pytest.mark.t0
MODULES = {
    "files": files_pb2, "memory": memory_pb2, "payload": payload_pb2, "system": system_pb2, "task": task_pb2,
}  # fmt: skip
ENUMERATOR = re.compile(r"^\s+([A-Z_0-9]+) = (\d+);$", re.MULTILINE)
FIELD = re.compile(r"^\s+(optional|required|repeated) (\w+) (\w+) = (\d+)(?: \[default = -1\])?;$", re.MULTILINE)
TYPES = {number: name[5:].lower() for name, number in vars(FieldDescriptor).items() if name.startswith("TYPE_")}


def _declared(text: str) -> set[tuple[str, ...]]:
    fields = set()
    for message in re.finditer(r"^message (\w+) \{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL):
        fields |= {(message[1], *field.groups()) for field in FIELD.finditer(message[2])}
    return fields


def _generated(message: Descriptor) -> set[tuple[str, ...]]:
    return {(message.name, _label(field), _type(field), field.name, str(field.number)) for field in message.fields}


def _label(field: FieldDescriptor) -> str:
    return "repeated" if field.is_repeated else "required" if field.is_required else "optional"


def _type(field: FieldDescriptor) -> str:
    named = field.message_type or field.enum_type
    return named.name if named is not None else TYPES[field.type]


@pytest.mark.parametrize("name", MODULES)
def test_generated_classes_are_current(name: str) -> None:
    text = (Path(proto.__file__).parent / f"{name}.proto").read_text()
    generated: set[tuple[str, ...]] = set()
    for message in MODULES[name].DESCRIPTOR.message_types_by_name.values():
        generated |= _generated(message)
    assert generated == _declared(text)
    assert _enumerators(MODULES[name].DESCRIPTOR) == set(ENUMERATOR.findall(text))
    fields_and_enumerators = text.count(" = ") - len(["syntax"]) - text.count("[default")
    assert len(_declared(text)) + len(ENUMERATOR.findall(text)) == fields_and_enumerators, (
        "the test reads all of the file"
    )


def _enumerators(file: FileDescriptor) -> set[tuple[str, str]]:
    enums = list(file.enum_types_by_name.values())
    for message in file.message_types_by_name.values():
        enums += message.enum_types
    return {(value.name, str(value.number)) for enum in enums for value in enum.values}


def test_they_are_made_by_protoc_in_the_root(tmp_path: Path, repo_root: Path) -> None:
    protoc = tmp_path / "protoc"
    protoc.write_text(f'#!/bin/sh\necho "$PWD" "$@" > {tmp_path}/called\nexit 3\n')
    protoc.chmod(0o755)
    command = [sys.executable, "-m", "transform.images.generate"]
    made = subprocess.run(command, cwd=repo_root, env={"PATH": str(tmp_path)}, check=False)
    assert made.returncode == 3
    called = (tmp_path / "called").read_text()
    assert called.startswith(f"{repo_root} -I. --python_out=. --mypy_out=quiet:. transform/images/proto/files.proto ")
    assert called.count(".proto") == len(MODULES)
