"""Names and paths that a data set gives itself: results are written under the ones and files read at the others.

A data set is downloaded, so what its lists say is not to be trusted further than its own folder: a case named
`../../evil` would write there, and a path `../../private.nii.gz` would be read.
"""

import os
import re
import unicodedata

__all__ = ["case_name", "path_inside"]

LONGEST = 200  # bytes of a case name; a file name has 255, and endings such as _trans.nii.gz are added
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


def case_name(name: object, where: str | os.PathLike[str]) -> str:
    """Return a case name as text if it can name files inside any folder on any system.

    Args:
        name: text or a number.
        where: the list that has it, for messages.

    Raises:
        ValueError: it is empty, longer than 200 bytes, starts with a dot or ends with one or a space, is reserved on
            Windows (such as "nul"), or has a slash, a backslash or a character that cannot be printed.
    """
    text = str(name) if isinstance(name, str | int | float) and not isinstance(name, bool) else ""
    shown = repr(name) if len(repr(name)) <= 80 else f"{repr(name)[:80]}..."
    if not text.strip():
        rule = "must be text that is not empty"
    elif len(text.encode(errors="replace")) > LONGEST:
        rule = f"must have at most {LONGEST} bytes, and has {len(text.encode(errors='replace'))}"
    elif "/" in text or "\\" in text:
        rule = "must have no slash or backslash, since results are named after it"
    elif any(unicodedata.category(character).startswith("C") for character in text):
        rule = "must have printable characters only"
    elif text.startswith((".", " ")) or text.endswith((".", " ")):
        rule = "must neither start nor end with a dot or a space"
    elif _RESERVED.fullmatch(text):
        rule = "must not be a name that Windows reserves for devices"
    else:
        return text
    raise ValueError(f"{where}: case name {shown} {rule}; give the case a plain name, such as case_001")


def path_inside(folder: str | os.PathLike[str], path: object, where: str | os.PathLike[str]) -> str:
    """Join a listed path to the folder of its data set; links in the folder may point elsewhere, the path may not.

    Args:
        folder: of the data set.
        path: as listed, relative to the folder, or absolute and inside it.
        where: the list that has it, for messages.

    Returns:
        Absolute path without "..".

    Raises:
        ValueError: it is no text, empty, has a character that no path has, or leaves the folder.
    """
    root = os.path.abspath(folder)
    if not isinstance(path, str | os.PathLike) or not str(path).strip() or "\0" in str(path):
        raise ValueError(f"{where}: path {path!r} must be the name of a file; correct it")
    joined = os.path.normpath(os.path.join(root, path))
    if joined == root or os.path.commonpath([joined, root]) != root:
        raise ValueError(f"{where}: path {str(path)!r} must stay inside {root}; move the file there or link to it")
    return joined
