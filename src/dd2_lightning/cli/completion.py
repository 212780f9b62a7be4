"""Shell completion of ``dd2``: a script for the shell, which asks the program for the words that may follow."""

from typing import Any

BASH = """\
_dd2() {
    local IFS=$'\\n' words
    words=$("$1" --complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
    COMPREPLY=($(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _dd2 dd2
"""
SCRIPTS = {"bash": BASH, "zsh": "autoload -U +X compinit bashcompinit && compinit && bashcompinit\n" + BASH}


def candidates(commands: dict[str, Any], words: list[str]) -> list[str]:
    """Commands or options that may stand last on a command line; none where a value is due, often a file's name.

    ``words`` are the command line without the program's name, of which the last is being typed.
    """
    *before, last = words or [""]
    name: str = "dd2"
    command: Any = commands
    while isinstance(command, dict):
        if not before:
            return list(command)
        name, *before = before
        command = command.get(name)
    if command is None or not last.startswith("-"):
        return []
    if command.trains:
        from dd2_lightning.cli.fit import OPTIONS, OPTIONS_OF

        return [*OPTIONS, *OPTIONS_OF[name]]
    from dd2_lightning.cli.functions import function_parser

    return [option for option in function_parser("dd2", command.load())._option_string_actions if len(option) > 2]
