"""Which command stands for a training image.

The embedded AMT pulls no containers. A training image is either in script mode (the static hyperparameters
``sagemaker_program`` and ``sagemaker_submit_directory`` say what to run, and the image does not matter), or
a command was mapped to it, with ``--image URI=COMMAND`` or because it is one of the bundled examples.
"""

from __future__ import annotations

import shlex
import shutil
import string
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from airflow_amt.exceptions import AmtFieldError

#: Images of the bundled example trainers, and the files behind them.
BUNDLED: Mapping[str, str] = {
    "airflow-amt.local/sklearn-digits:latest": "digits.py",
    "airflow-amt.local/sklearn-breast-cancer:latest": "breast_cancer.py",
}


def bundled_commands() -> dict[str, list[str]]:
    """Return the commands of the bundled images."""
    # By file and not by module: training processes run elsewhere, and this package need not be installed.
    folder = Path(__file__).parent / "trainers"
    return {image: [sys.executable, "-P", str(folder / file)] for image, file in BUNDLED.items()}


def parse_mappings(mappings: Iterable[str], folder: Path) -> dict[str, list[str]]:
    """Read ``URI=COMMAND`` options into commands.

    The program is looked up on the ``PATH``, and words that name files are made absolute, because training
    processes run in folders of their own.

    :param mappings: the options.
    :param folder: what relative file names are relative to.
    :raises AmtFieldError: an option has no ``=``, no image or no command, names an image twice, has
        unbalanced quotes, or its program or a script (``.py``, ``.sh``) among its arguments is not found.
    """
    commands: dict[str, list[str]] = {}
    for mapping in mappings:
        image, separator, text = mapping.partition("=")
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise _refusal(mapping, f"a command with balanced quotes ({error})") from None
        image = image.strip()
        if not separator or not image or not words or "\0" in mapping:
            raise _refusal(mapping, "IMAGE_URI=COMMAND")
        if image in commands:
            raise _refusal(mapping, f"each image once; {image} was mapped before")
        commands[image] = _absolute(mapping, words, folder)
    return commands


def _absolute(mapping: str, words: list[str], folder: Path) -> list[str]:
    program, *arguments = words
    local = folder / program
    found = str(local.absolute()) if "/" in program and _is_file(local) else shutil.which(program)
    if found is None:
        raise _refusal(mapping, f"a program that can be executed; {program!r} was not found")
    return [found, *(_argument(mapping, word, folder) for word in arguments)]


def _argument(mapping: str, word: str, folder: Path) -> str:
    path = folder / word
    if _is_file(path):
        return str(path.absolute())
    # Options and shell commands (`sh -c 'cd x; sh train.sh'`) may end like a script without being one.
    if word.endswith((".py", ".sh")) and not word.startswith("-") and not set(word) & set(string.whitespace):
        raise _refusal(mapping, f"scripts that exist; {word!r} is not in {folder}")
    return word


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # such as a name that is too long to be one: a piece of a shell command
        return False


def _refusal(mapping: str, limit: str) -> AmtFieldError:
    return AmtFieldError("image", mapping, limit, "as in --image 'my-image:latest=python train.py'")
