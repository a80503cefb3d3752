"""Turn a dex file back into a jar, so that a JVM runs the very code that is in the APK.

    python -m android_demo.tools.dex_to_jar classes.dex out.jar

Debian's enjarify does the work. It fills `const-wide/32` up with zeros where the dex format says that the sign is
extended, which would change negative 64-bit constants; that is put right here. The translated classes have no stack
maps; their version is old enough for the JVM not to want them.
"""

from __future__ import annotations

import importlib
import sys
import zipfile
from pathlib import Path
from typing import Any

from android_demo.tools.commands import BuildError

_DEBIAN = "/usr/lib/python3/dist-packages"
_CONST_WIDE_32 = 0x17


UNTRANSLATED = frozenset({"ai/onnxruntime/platform/Fp16Conversions"})
"""Left out: calls method handles, which enjarify does not know. The runtime's package for phones has another one."""


def dex_to_jar(dex: Path, jar: Path) -> int:
    """Translate; gives the number of classes.

    Raises:
        BuildError: enjarify is not installed, or cannot translate a class.
    """
    parsedex, options, writeclass, decode = _enjarify()
    classes = parsedex.DexFile(dex.read_bytes()).classes
    with zipfile.ZipFile(jar, "w", zipfile.ZIP_STORED) as out:
        for found in classes:
            name = decode(found.name)
            if name in UNTRANSLATED:
                continue
            try:
                out.writestr(f"{name}.class", writeclass.toClassFile(found, options.PRETTY))
            except Exception as error:
                # Whatever goes wrong in foreign code, the class is what one wants to know.
                raise BuildError(f"enjarify cannot translate {name}: {type(error).__name__}: {error}") from error
    return len(classes)


def _enjarify() -> tuple[Any, Any, Any, Any]:
    if _DEBIAN not in sys.path:
        # At the end: what is installed for this Python goes first.
        sys.path.append(_DEBIAN)
    try:
        formats: Any = importlib.import_module("enjarify.dalvikformats")
        parsedex = importlib.import_module("enjarify.parsedex")
        options = importlib.import_module("enjarify.jvm.optimization.options")
        writeclass = importlib.import_module("enjarify.jvm.writeclass")
        mutf8 = importlib.import_module("enjarify.mutf8")
    except ImportError as error:
        raise BuildError(
            f"enjarify cannot be imported: {error}", hint="tools/setup_android.sh installs it where it may"
        ) from error
    original = formats.decode
    if original.__module__ == formats.__name__:

        def decode(shorts: Any, position: int, opcode: int) -> tuple[int, Any]:
            position, arguments = original(shorts, position, opcode)
            if opcode == _CONST_WIDE_32:
                arguments[-1] = formats.sign(arguments[-1], 32)
            return position, arguments

        formats.decode = decode
    return parsedex, options, writeclass, mutf8.decode


def main(arguments: list[str]) -> int:
    """Translate the first into the second."""
    dex, jar = map(Path, arguments)
    print(f"{jar}: {dex_to_jar(dex, jar)} classes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
