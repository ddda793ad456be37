"""What looks like a credential, by a file's name and by what stands in it: no record may carry such a thing away.

A guess on the safe side. What is wrongly taken for one can be named with ``!`` in ``.lockstepignore`` (ignored.py),
and what is not recognised can be named there as well.
"""

import base64
import binascii
import fnmatch
import re
from collections.abc import Iterator
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
    *(
        "cookies.txt",
        "*cookies.txt",
        "cookies.json",
        "cookies.sqlite",
        "kubeconfig*",
        "*.kubeconfig",
        ".dockercfg",
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
    rb"|\bAGE-SECRET-KEY-1[0-9A-Za-z]{20,}"
    rb"|\b[0-9]{8,10}:[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])"  # a bot of Telegram
    rb"|\bhooks\.slack\.com/services/T[A-Za-z0-9/]{20,}|\bdiscord(?:app)?\.com/api/webhooks/[0-9]+/[\w-]{30,}"
    rb"|(?i:\b(?:Account|SharedAccess)Key)['\"]?\s*[:=]\s*['\"]?[A-Za-z0-9+/]{40,}={0,2}"  # Azure
    rb"|[?&]sig=(?=[^&\s'\"]*[0-9])[A-Za-z0-9%+/=]{30,}"
    rb"|client-key-data['\"]?\s*:\s*['\"]?[A-Za-z0-9+/=]{20,}"  # Kubernetes, and private keys in base 64
    rb"|LS0tLS1CRUdJTiB(?:SU0EgUFJ|QUklWQVRF|FQyBQUk|PUEVOU1NI|FTkNSWVBURUQg)"
    rb"|(?m:^[+\- ]?# (?:Netscape )?HTTP Cookie File)"
    rb"|\b[rs]k_live_[0-9a-zA-Z]{16,}|\bSG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}"
    rb"|\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"
    rb"|\b[a-z][a-z0-9+.-]*://[^\s/:@'\"{}$<>]+:[^\s/:@'\"{}$<>]{3,}@"
)
_WORD = (  # and what may follow it in a name: a tokenizer's is none
    rb"(?:pass(?:word|wd|phrase)|pwd|secret|token|(?:api|access|secret|private|auth|account|encryption|signing)"
    rb"[_-]?key|credential)s?(?:_?(?:value|string|str|text|prod|dev|live|test|[0-9]+))?"
)
_IS = rb"['\"]?\s*\]?\s*(?::\s*\w+\s*=|=>|[:=]{1,2})\s*"  # also after os.environ["NAME"], and after a type
# NAME = "value": quoted, as programs have it. The value must hold a digit, so that a message is none.
_QUOTED = re.compile(
    rb"(?i)" + _WORD + _IS + rb"[bru]{0,2}(['\"])"
    rb"(?=[^'\"\s]*[0-9])(?=[^'\"\s]*[A-Za-z])[^'\"\s{}<>$]{12,}\1"
)
_SET = re.compile(  # os.environ.setdefault("NAME", "value")
    rb"(?i)\b(?:setdefault|setenv|putenv)\(\s*(['\"])[\w.-]*" + _WORD + rb"\1\s*,\s*(['\"])"
    rb"(?=[^'\"\s]*[0-9])(?=[^'\"\s]*[A-Za-z])[^'\"\s{}<>$]{12,}\2"
)
# "... NAME=value": both in one string.
_INSIDE = re.compile(
    rb"(?i)" + _WORD + rb"\s*[:=]\s*"
    rb"(?=[^'\"\s]*[0-9])(?=[^'\"\s]*[A-Za-z])[A-Za-z0-9/+_.~=-]{12,}(?:['\"]|&[\w.-]+=|;[\w. ]+=)"
)
_PHRASE = (  # words of one's own, and not a message or a placeholder
    rb"(?!(?i:[^'\"\n]*(?:pass|secret|token|your|enter|change|example|requir|invalid|wrong|please|must|cannot|"
    rb"\bthe\b|\bfor\b|\bnot\b|field|hidden|default|optional|\*\*|xxx|\.\.\.)))"
)
_PASS_PHRASE = re.compile(
    rb"(?i)(?:pass(?:word|wd|phrase)|pwd)"
    + _IS
    + rb"[bru]{0,2}(['\"])"
    + _PHRASE
    + rb"[^'\"\n{}<>$%\\]{8,}\1"
)
_PLAIN_PHRASE = re.compile(
    rb"(?im)^[+\- ]?\s*[\w.-]*(?:pass(?:word|wd|phrase)|pwd)\s*[:=]\s*"
    + _PHRASE
    + rb"[^'\"\n{}<>$%()\[\]|&]{8,}$"
)
# NAME=value to the end of the line, as files of settings have it.
_PLAIN = re.compile(
    rb"(?im)^[+\- ]?\s*(?:export\s+)?['\"]?[\w.-]*" + _WORD + rb"['\"]?\s*[:=]\s*"
    rb"(?=\S*[0-9])(?=\S*[A-Za-z])[^\s'\"{}<>$()\[\]]{8,}\s*,?\s*$"
)
_HEADER = re.compile(
    rb"(?i:\bAuthorization['\"]?\s*\]?\s*[:=,]\s*[bfru]{0,2}['\"]?(?:Bearer|Token)|['\"]Bearer)\s+"
    rb"(?=[^\s'\"]*[0-9])[A-Za-z0-9._~+/=-]{12,}"
    rb"|(?i:\bAuthorization['\"]?\s*\]?\s*[:=,]\s*[bfru]{0,2}['\"]?Basic)\s+"
    rb"(?=[^\s'\"]*[A-Z])(?=[^\s'\"]*[a-z])[A-Za-z0-9+/]{8,}={0,2}(?=['\"\s]|$)"
)
_DOCKER = re.compile(rb"['\"]?auth['\"]?\s*:\s*['\"]([A-Za-z0-9+/]{8,}={0,2})['\"]")
_SETTINGS = {".yaml", ".yml", ".ini", ".cfg", ".conf", ".toml", ".properties", ".env"}


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
    return any(_holds_one(PurePosixPath(path).suffix, text) for text in _readings(content))


def _holds_one(suffix: str, text: bytes) -> bool:
    anywhere = (_KNOWN, _QUOTED, _SET, _INSIDE, _PASS_PHRASE, _HEADER)
    if any(pattern.search(text) for pattern in anywhere) or any(map(_is_login, _DOCKER.findall(text))):
        return True
    if suffix in _SETTINGS and _PLAIN_PHRASE.search(text):
        return True
    return suffix not in _PROGRAMS and _PLAIN.search(text) is not None


def _readings(content: bytes) -> Iterator[bytes]:
    """The bytes as they are, as UTF-16 has them, and as a string in a string has them (a notebook's cell)."""
    yield content
    if b"\0" in content:
        content = content.replace(b"\0", b"").removeprefix(b"\xff\xfe").removeprefix(b"\xfe\xff")
        yield content
    if b"\\" in content:
        yield re.sub(rb"\\+(?=['\"])", b"", content).replace(b"\\n", b"\n")


def _is_login(encoded: bytes) -> bool:
    """Whether this is the base 64 of user:password, as docker keeps it."""
    try:
        return b":" in base64.b64decode(encoded, validate=True)
    except binascii.Error:
        return False
