"""Why a file cannot be read, in words for the person who named it."""


def reading_fault(error: Exception) -> str:
    """The reason without the file's name, which the caller shows.

    >>> reading_fault(FileNotFoundError(2, "No such file or directory", "x.csv"))
    'No such file or directory'
    """
    match error:
        case UnicodeDecodeError():
            return f"it is not UTF-8 text: {error.reason} at byte {error.start}"
        case OSError(strerror=str(reason)):
            return reason
        case EOFError():
            return "it is cut off"
        case _:
            return str(error)
