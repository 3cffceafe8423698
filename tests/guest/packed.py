"""Taking compressed modules and kernels apart, so that no guest has to."""

import lzma
import struct
import subprocess
import zlib


def decompressed(data: bytes) -> bytes:
    """Data without its xz, gzip or zstd wrapping, or as it is if it has none of these.

    What follows the compressed stream is ignored: a kernel puts its length there.
    """
    if data.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMADecompressor().decompress(data)
    if data.startswith(b"\x1f\x8b"):
        return zlib.decompressobj(wbits=31).decompress(data)
    if data.startswith(b"\x28\xb5\x2f\xfd"):
        # Its exit status also counts what follows the stream: what came out is the judge.
        return subprocess.run(["zstd", "-dc"], input=data, capture_output=True, check=False).stdout
    return data


def unpacked_kernel(image: bytes) -> bytes:
    """The ELF kernel inside an x86 bzImage, or the bzImage if it cannot be had.

    QEMU boots either (the ELF one by its PVH entry, CONFIG_PVH). Unpacking it
    here takes a second; under TCG the guest spends half of its boot on it.
    Field offsets: https://docs.kernel.org/arch/x86/boot.html, "The Real-Mode Kernel Header".
    """
    (setup_sectors,) = struct.unpack_from("<B", image, 0x1F1)
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    kernel = decompressed(image[start : start + length])
    return kernel if kernel.startswith(b"\x7fELF") else image
