"""What looks like a credential, by a file's name and by what stands in it: no record may carry such a thing away.

A guess on the safe side. What is wrongly taken for one can be named with ``!`` in ``.lockstepignore`` (ignored.py),
and what is not recognised can be named there as well.
"""

import fnmatch
import re
from pathlib import PurePosixPath

_NAMES = (
    *(
        ".env",
        ".env.*",
        "*.env",
        ".envrc",
        ".netrc",
        "_netrc",
        ".npmrc",
        ".pypirc",
        ".htpasswd",
        ".pgpass",
        ".my.cnf",
    ),
    *("*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx", "*.ppk", "*.asc", "*.gpg"),
    *(
        "id_rsa*",
        "id_dsa*",
        "id_ecdsa*",
        "id_ed25519*",
        ".git-credentials",
        ".vault-token",
        ".boto",
        ".s3cfg",
    ),
    *("credentials", "credentials.*", "credential.*", ".credentials*", "*_credentials.*", "*-credentials.*"),
    *(
        "secret",
        "secret.*",
        "secrets",
        "secrets.*",
        ".secret*",
        "*.secret",
        "*.secrets",
        "*_secrets.*",
        "*_secret.*",
    ),
    *(
        "kaggle.json",
        "service-account*.json",
        "service_account*.json",
        "client_secret*",
        "token",
        "token.*",
        "*.token",
    ),
    *(
        "api_key",
        "api_key.*",
        "apikey",
        "apikey.*",
        "api-key*",
        "passwords.*",
        "password.*",
        "*.tfvars",
        "*.tfstate",
    ),
)
_EXAMPLES = ("*.example", "*.sample", "*.template", "*.dist")  # which are made to be shown
_PROGRAMS = {
    ".py",
    ".pyi",
    ".c",
    ".cc",
    ".cpp",
    ".cu",
    ".h",
    ".rs",
}  # secrets.py is a program: its text decides
_FOLDERS = {".ssh", ".aws", ".gnupg", ".kube", ".docker", ".azure", ".gcloud"}

_KNOWN = re.compile(
    rb"-----BEGIN [A-Z ]*PRIVATE KEY"
    rb"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"
    rb"|\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_[A-Za-z0-9_]{30,}|\bglpat-[A-Za-z0-9_-]{20,}"
    rb"|\bhf_[A-Za-z0-9]{30,}|\bsk-(?=[A-Za-z0-9_-]*[0-9])[A-Za-z0-9_-]{20,}|\bxox[abeoprs]-[A-Za-z0-9-]{10,}"
    rb"|\bAIza[0-9A-Za-z_-]{35}|\bya29\.[0-9A-Za-z_-]{20,}|\bnpm_[A-Za-z0-9]{36}|\bpypi-AgE[A-Za-z0-9_-]{40,}"
    rb"|\b[rs]k_live_[0-9a-zA-Z]{16,}|\bSG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}"
    rb"|\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"
    rb"|\b[a-z][a-z0-9+.-]*://[^\s/:@'\"{}$<>]+:[^\s/:@'\"{}$<>]{3,}@"
)
_WORD = (  # and what may follow it in a name: a tokenizer's is none
    rb"(?:pass(?:word|wd|phrase)|secret|token|(?:api|access|secret|private|auth)[_-]?key|credential)s?"
    rb"(?:_?(?:value|string|str|text|prod|dev|live|test|[0-9]+))?"
)
# NAME = "value": quoted, as programs have it. The value must hold a digit, so that a message is none.
_QUOTED = re.compile(
    rb"(?i)\b[\w.-]*" + _WORD + rb"['\"]?\s*[:=]{1,2}\s*[bru]{0,2}(['\"])"
    rb"(?=[^'\"\s]*[0-9])(?=[^'\"\s]*[A-Za-z])[^'\"\s{}<>$]{12,}\1"
)
# NAME=value to the end of the line, as files of settings have it.
_PLAIN = re.compile(
    rb"(?im)^[+\- ]?\s*(?:export\s+)?['\"]?[\w.-]*" + _WORD + rb"['\"]?\s*[:=]\s*"
    rb"(?=\S*[0-9])(?=\S*[A-Za-z])[^\s'\"{}<>$()\[\]]{8,}\s*,?\s*$"
)


def named_like_one(path: str) -> bool:
    """Whether a file of this name is one that usually holds a credential."""
    found = PurePosixPath(path)
    if _FOLDERS & set(found.parts[:-1]):
        return True
    name = found.name.lower()
    if found.suffix in _PROGRAMS or any(fnmatch.fnmatchcase(name, each) for each in _EXAMPLES):
        return False
    return any(fnmatch.fnmatchcase(name, each) for each in _NAMES)


def in_patch(patch: bytes) -> bool:
    """Whether a patch, perhaps of a version that left nothing out, has a file that is or holds a credential."""
    for part in re.split(rb"(?m)^(?=diff --git )", patch):
        named = re.match(rb"diff --git \"?a/(.*?)\"? \"?b/", part)
        name = named.group(1).decode(errors="replace") if named else ""
        if (name and named_like_one(name)) or holds_one(name, part):
            return True
    return False


def holds_one(path: str, content: bytes) -> bool:
    """Whether something in these bytes of a file, or of its part of a patch, looks like a credential."""
    if _KNOWN.search(content) or _QUOTED.search(content):
        return True
    return PurePosixPath(path).suffix not in _PROGRAMS and _PLAIN.search(content) is not None
