"""``fscl cache`` says how large the cache of decoded images is, and clears it."""

from typing import Annotated

import typer

__all__ = ["cache"]


def cache(clear: Annotated[bool, typer.Option("--clear", help="Delete the cached images.")] = False) -> None:
    """Show the cache of decoded images, which later runs read in place of image files, and its size."""
    from fscl.data.image_files import cache_folder, cached_copies
    from fscl.errors import printable
    from fscl.text import human_bytes

    files = cached_copies()
    size = human_bytes(sum(file.stat().st_size for file in files))
    if clear:
        for file in files:
            file.unlink(missing_ok=True)
    what = "deleted from" if clear else "in"
    typer.echo(f"{len(files)} data sets, {size}, {what} {printable(str(cache_folder()))}")
