"""Paths moved from one prefix to another."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.transform.synthetic import UNKNOWN_HIGH, BytesStore, image, inet, regular, unix
from transform.chain import Chain, EndOfDump
from transform.errors import ImageError, OptionError, TransformError
from transform.images.codec import decode
from transform.images.proto import files_pb2, task_pb2
from transform.path_map import FILES, Mapping, PathMap

pytestmark = pytest.mark.t0


def mapped(path_map: PathMap, *files: files_pb2.File) -> list[files_pb2.File]:
    data = path_map.transform(FILES, image("files", *files))
    return decode(FILES, data).messages(files_pb2.File)


def path_map(*values: str) -> PathMap:
    return PathMap([Mapping.parse(value) for value in values])


@pytest.mark.parametrize(
    ("value", "path", "new"),
    [
        ("/a:/b", b"/a", b"/b"),
        ("/a:/b", b"/a/x", b"/b/x"),
        ("/a:/b", b"/ab", None),
        ("/a:/b", b"/x/a", None),
        ("/a:/b", b"a", None),
        ("/a/:/b/", b"/a/x", b"/b/x"),
        ("/a/c:/", b"/a/c/x", b"/x"),
        ("/a/c:/", b"/a/c", b"/"),
        ("/a:/é", b"/a/\xff", "/é/".encode() + b"\xff"),
    ],
)
def test_a_prefix_matches_at_a_component(value: str, path: bytes, new: bytes | None) -> None:
    assert Mapping.parse(value).apply(path) == new


@pytest.mark.parametrize(
    "value", ["", "/a", "/a:/b:/c", "a:/b", "/a:b", ":/b", "/a:", "/:/b", "/a//b:/c", "/a/../b:/c"]
)
def test_wrong_options_are_named(value: str) -> None:
    with pytest.raises(OptionError, match=r"--map-path "):
        Mapping.parse(value)


@given(st.text(max_size=12))
def test_any_text_is_a_mapping_or_an_option_error(value: str) -> None:
    try:
        mapping = Mapping.parse(value)
    except OptionError:
        return
    assert mapping.apply(mapping.old + b"/x") == mapping.new + b"/x"


def test_one_prefix_has_one_place() -> None:
    with pytest.raises(OptionError, match="give each prefix once"):
        path_map("/a:/b", "/a/:/c")


def test_the_longest_prefix_wins_and_no_path_moves_twice() -> None:
    files = mapped(
        path_map("/a:/b", "/b:/c", "/a/deep:/d"), *(regular(1, path) for path in (b"/a/x", b"/b/x", b"/a/deep"))
    )
    assert [file.reg.name for file in files] == [b"/b/x", b"/c/x", b"/d"]


def test_only_the_name_changes() -> None:
    raw = regular(1, b"/old/f", mnt_id=4, mode=33188).SerializeToString() + UNKNOWN_HIGH
    other = inet(2, 80)
    before = image("files", raw, other)
    after = path_map("/old:/new").transform(FILES, before)
    assert after == before.replace(b"/old/f", b"/new/f")


def test_external_files_have_keys_not_paths() -> None:
    external = regular(1, b"/a")
    external.reg.ext = True
    assert [file.reg.name for file in mapped(path_map("/a:/b"), external, regular(2, b"/a"))] == [b"/a", b"/b"]


def test_sockets() -> None:
    files = mapped(
        path_map("/a:/bb"),
        *(unix(1, b"/a/s\0"), unix(2, b"\0/a/abstract"), unix(3, b"s\0", name_dir=b"/a/dir"), unix(4, b"")),
    )
    assert [file.usk.name for file in files] == [b"/bb/s\0", b"\0/a/abstract", b"s\0", b""]
    assert files[2].usk.name_dir == b"/bb/dir"
    assert not files[0].usk.HasField("name_dir")


def test_watches() -> None:
    handle = files_pb2.FileHandle(bytes=1, type=1, path=b"/a/w")
    inotify = files_pb2.Inotify(id=1, flags=0, wd=[files_pb2.InotifyWatch(id=1, wd=1, f_handle=handle)])
    pathless = files_pb2.FileHandle(bytes=1, type=1)
    fanotify = files_pb2.Fanotify(
        id=2,
        flags=0,
        mark=[
            files_pb2.FanotifyMark(id=2, me=files_pb2.FanotifyMountMark(mnt_id=1, path=b"/a")),
            files_pb2.FanotifyMark(id=2, ie=files_pb2.FanotifyInodeMark(i_ino=1, f_handle=pathless)),
        ],
    )
    files = mapped(
        path_map("/a:/b"),
        files_pb2.File(type=task_pb2.INOTIFY, id=1, ify=inotify),
        files_pb2.File(type=task_pb2.FANOTIFY, id=2, ffy=fanotify),
    )
    assert files[0].ify.wd[0].f_handle.path == b"/b/w"
    assert files[1].ffy.mark[0].me.path == b"/b"
    assert not files[1].ffy.mark[1].ie.f_handle.HasField("path")


def test_a_new_path_must_fit() -> None:
    long = "/" + "n" * 103
    assert mapped(path_map(f"/a:{long}"), unix(1, b"/a/s1\0"))[0].usk.name == long.encode() + b"/s1\0"
    with pytest.raises(TransformError, match="has 108 bytes, 107 fit"):
        mapped(path_map(f"/a:{long}"), unix(1, b"/a/s12\0"))
    with pytest.raises(TransformError, match="has 4096 bytes, 4095 fit"):
        mapped(path_map("/a:/" + "n" * 4093), regular(1, b"/a/f"))


def test_what_matched_nothing_is_told() -> None:
    some = path_map("/a:/b", "/z:/")
    mapped(some, regular(1, b"/a"))
    assert some.unmatched == ("/z:/",)
    assert Chain([some]).warnings == ("--map-path /z:/: matched nothing in this dump",)
    with pytest.raises(TransformError, match="lies under any OLD of --map-path /z:/y"):
        mapped(path_map("/z:/y"), regular(1, b"/a"))
    with pytest.raises(TransformError, match=r"files\.img"):
        path_map("/a:/b").finish(EndOfDump({}, BytesStore()))
    assert some.finish(EndOfDump({}, BytesStore())) == {}


@given(st.binary())
def test_garbage_is_an_image_error(data: bytes) -> None:
    with pytest.raises(ImageError):
        path_map("/a:/b").transform(FILES, data)
