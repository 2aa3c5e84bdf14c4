"""The README of a folder of C: what is in it, and the lines that call it."""

from __future__ import annotations

from orbit_kd.exporters.c99.network import Network
from orbit_kd.exporters.c99.sources import ports

_TEXT = """\
# {name}: a neural network in plain C99

Written by orbit_kd. It needs {constants:,} bytes of flash for constants, the code of its kernels, and {arena:,} bytes
of RAM for its context, beside inputs and outputs. It calls nothing but `memcpy` and `memset`.

| file | what it is |
|---|---|
| `model.h` | sizes, scales and zero points; `{name}_context`; `{name}_invoke` |
| `model.c` | constants, and a call for each layer |
| `orbit_kernels.h`, `orbit_kernels.c`, `conv_*.h` | the kernels that this network needs |
| `golden.h`, `main.c` | an input, the output that belongs to it, and a program that checks it |
| `manifest.json` | digests of the files, versions, the layers and the formats of their weights |

Check it on any machine:

    cc -std=c99 -O2 main.c model.c orbit_kernels.c -o check && ./check && echo ok

Call it:

    #include "model.h"

    static {name}_context context;
{buffers}
    {name}_invoke(&context, {arguments});
"""


def readme(name: str, network: Network, *, constants: int, arena: int) -> str:
    """The text.

    Args:
        name: how the C functions begin.
        network: whose ports it has.
        constants: bytes of flash.
        arena: bytes of RAM.
    """
    both = [port for side in ports(network.inputs, network.outputs) for port in side]
    buffers = "\n".join(f"    static {p.type} {p.name}[{name.upper()}_{p.name.upper()}_SIZE];" for p in both)
    return _TEXT.format(
        name=name, constants=constants, arena=arena, buffers=buffers, arguments=", ".join(p.name for p in both)
    )
