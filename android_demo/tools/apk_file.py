"""The APK as a file: a ZIP whose native libraries lie on pages of 16 KiB, and what can be read back from one.

Android maps libraries and resources out of the APK, so that they are stored as they are and aligned; phones with pages
of 16 KiB refuse libraries on 4 KiB. Debian's zipalign knows 4 KiB only, hence the writer here.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PAGE_BYTES = 16 * 1024
WORD_BYTES = 4

_LOCAL_HEADER_BYTES = 30
_ALIGNMENT_EXTRA = struct.Struct("<HHH")  # APK alignment: id, size, alignment; then padding
_ALIGNMENT_EXTRA_ID = 0xD935
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same content gives the same bytes

_DEX_MAGIC = b"dex\n"
_DEX_METHOD_IDS_AT = 88
_PROGRAM_HEADER_LOAD = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One file in an APK.

    Attributes:
        offset: of its content from the start of the APK, bytes.
        stored: whether it is there as it is, not compressed.
    """

    name: str
    offset: int
    size_bytes: int
    stored: bool


def write_apk(path: Path, files: Mapping[str, bytes]) -> None:
    """Write an unsigned APK: what Android maps is stored and aligned, the rest compressed."""
    with path.open("wb") as raw, zipfile.ZipFile(raw, "w") as apk:
        for name, content in sorted(files.items()):
            info = zipfile.ZipInfo(name, _EPOCH)
            if is_mapped(name):
                alignment = alignment_of(name)
                start = raw.tell() + _LOCAL_HEADER_BYTES + len(name.encode()) + _ALIGNMENT_EXTRA.size
                padding = -start % alignment
                info.extra = _ALIGNMENT_EXTRA.pack(_ALIGNMENT_EXTRA_ID, 2 + padding, alignment) + bytes(padding)
                info.compress_type = zipfile.ZIP_STORED
            else:
                info.compress_type = zipfile.ZIP_DEFLATED
            apk.writestr(info, content, compresslevel=9)


def is_mapped(name: str) -> bool:
    """Whether Android reads it without unpacking."""
    return name.endswith(".so") or name == "resources.arsc"


def alignment_of(name: str) -> int:
    """On which multiple of bytes a mapped file must begin."""
    return PAGE_BYTES if name.endswith(".so") else WORD_BYTES


def entries(path: Path) -> list[Entry]:
    """What an APK holds, with where each content really begins."""
    found = []
    with path.open("rb") as raw, zipfile.ZipFile(raw) as apk:
        for info in apk.infolist():
            # The local header has an extra field of its own.
            raw.seek(info.header_offset + 26)
            name_bytes, extra_bytes = struct.unpack("<HH", raw.read(4))
            offset = info.header_offset + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes
            found.append(Entry(info.filename, offset, info.file_size, info.compress_type == zipfile.ZIP_STORED))
    return found


def compressed_bytes(path: Path) -> int:
    """What a download of it takes: stores compress what an APK must hold as it is."""
    with zipfile.ZipFile(path) as apk:
        stored = [info for info in apk.infolist() if info.compress_type == zipfile.ZIP_STORED]
        saved = sum(info.file_size - len(zlib.compress(apk.read(info))) for info in stored)
    return path.stat().st_size - saved


def read(path: Path, name: str) -> bytes:
    """One file's content."""
    with zipfile.ZipFile(path) as apk:
        return apk.read(name)


def contents(path: Path) -> dict[str, bytes]:
    """All files by name."""
    with zipfile.ZipFile(path) as apk:
        return {name: apk.read(name) for name in apk.namelist()}


def dex_methods(content: bytes) -> int:
    """How many methods a dex file names; 65,536 is the format's limit.

    Raises:
        ValueError: it is no dex file.
    """
    if not content.startswith(_DEX_MAGIC) or len(content) < _DEX_METHOD_IDS_AT + 4:
        raise ValueError("this is no dex file")
    return int(struct.unpack_from("<I", content, _DEX_METHOD_IDS_AT)[0])


def page_bytes_of_library(content: bytes) -> int:
    """The smallest alignment of what is loaded of a 64-bit ELF library: below 16 KiB, some phones refuse it.

    Raises:
        ValueError: it is no 64-bit little-endian ELF file.
    """
    if content[:6] != b"\x7fELF\x02\x01":
        raise ValueError("this is no 64-bit little-endian ELF file")
    start, size, count = (
        struct.unpack_from("<Q", content, 32)[0],
        struct.unpack_from("<H", content, 54)[0],
        struct.unpack_from("<H", content, 56)[0],
    )
    headers = [start + index * size for index in range(count)]
    loads = [at for at in headers if struct.unpack_from("<I", content, at)[0] == _PROGRAM_HEADER_LOAD]
    if not loads:
        raise ValueError("this ELF file loads nothing")
    return min(int(struct.unpack_from("<Q", content, at + 48)[0]) for at in loads)
