"""Web-dataset tars of small pictures with captions."""

import io
import tarfile

from pictures import noise


def write_tar(path, members):
    """A tar of (name, bytes or text); its path as text."""
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            content = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return str(path)


def pairs(numbers, prefix=""):
    """The members of pairs with these numbers."""
    for n in numbers:
        yield f"{prefix}{n:04}.jpg", noise(n)
        yield f"{prefix}{n:04}.txt", f"picture number {n}"


def tars_of_pairs(folder, number=4, each=6):
    """A folder of so many tars with so many pairs each, no two alike."""
    folder.mkdir(exist_ok=True)
    for n in range(number):
        members = []
        for i in range(each):
            members += [(f"{i}.jpg", noise(100 * n + i)), (f"{i}.txt", f"pair {n} {i}")]
        write_tar(folder / f"{n}.tar", members)
    return folder
