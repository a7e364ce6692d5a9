"""Writes messages.jsonl.gz: random chat messages and what pydantic makes of them.

    pip install pydantic==2.14.3 openai==3.52.0
    python prompt/testdata/messages.py VLLM/renderers/chat_utils/types.py

The argument is that file of a vLLM 0.33.0 package; of its imports only pydantic
and openai are needed, the others are stubs here. Each line is a message and its
class: ok, schema (refused at once), lazy (refused when somebody reads the content
parts or tool calls, which OpenAI's types put off).
"""

import gzip
import importlib.util
import json
import pathlib
import random
import sys
import types

from pydantic import BaseModel, ConfigDict, ValidationError

HERE = pathlib.Path(__file__).resolve().parent
COUNT = 3000
rng = random.Random(7)


class Harmony(BaseModel):
    author: dict
    content: list


def stub(name, **members):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__dict__.update(members)


stub("PIL", Image=types.SimpleNamespace(Image=type("Image", (), {})))
stub("openai_harmony", Message=Harmony)
spec = importlib.util.spec_from_file_location("vllm_types", sys.argv[1])
vllm_types = importlib.util.module_from_spec(spec)
sys.modules["vllm_types"] = vllm_types
spec.loader.exec_module(vllm_types)


class Request(BaseModel):
    # vLLM's request takes fields it does not know, and so do the types inside.
    model_config = ConfigDict(extra="allow")
    message: vllm_types.ChatCompletionMessageParam


def classify(message):
    try:
        read = Request.model_validate({"message": message}).message
    except ValidationError:
        return "schema"
    try:
        for field in ("content", "tool_calls"):
            if not isinstance(read.get(field), (str, type(None))):
                list(read[field])
    except ValidationError:
        return "lazy"
    return "ok"


def maybe(p):
    return rng.random() < p


def content_part():
    part = rng.choice(
        [
            "plain",
            {"type": "text", "text": rng.choice(["a", "b c", ""])},
            {"type": "text", "text": rng.choice(["a", "b c", ""])},
            {"type": "text", "text": "d"},
            {"type": "refusal", "refusal": "no"},
            {"type": "thinking", "thinking": "hm"},
            {"type": "image_url", "image_url": {"url": "http://x"}},
            {"type": "input_text", "text": "x"},
            {"type": "text", "text": None},
            {"type": "tool_reference", "name": "f"},
            {"text": "no type"},
            {"image_url": "http://x"},
            {"type": "foo", "foo": 1},
        ]
    )
    if isinstance(part, dict):
        if maybe(0.1):
            part = part | {"cache_control": {"type": "ephemeral"}}
        if maybe(0.05):
            part = part | {"uuid": "u"}
    return part


def tool_call():
    function = {"name": "f", "arguments": rng.choice(["{}", '{"a": 1}', "", "bad"])}
    if maybe(0.1):
        function["arguments"] = {}
    if maybe(0.1):
        del function["arguments"]
    if maybe(0.1):
        function["extra"] = 1
    call = {"id": "c1", "type": "function", "function": function}
    if maybe(0.1):
        del call["id"]
    if maybe(0.1):
        call["type"] = rng.choice(["custom", "x"])
    if maybe(0.1):
        call = {"id": "c1", "type": "custom", "custom": {"name": "f", "input": "i"}}
    if maybe(0.1):
        call["index"] = 0
    return call


ROLES = "user user assistant assistant assistant system developer tool tool function critic".split() + [""]


def message():
    m = {}
    if maybe(0.97):
        m["role"] = rng.choice(ROLES)
    shape = rng.randrange(10)
    if shape < 4:
        m["content"] = "text"
    elif shape < 8:
        m["content"] = [content_part() for _ in range(rng.randrange(4))]
    elif shape == 8:
        m["content"] = None
    if maybe(0.03):
        m["content"] = rng.choice([5, True])
    for chance, field, values in (
        (0.15, "name", ["bob", "bob", None, 3]),
        (0.7 if m.get("role") == "tool" else 0.3, "tool_call_id", ["c1", "c1", "c1", None, 7]),
        (0.5 if m.get("role") == "assistant" else 0.05, "tool_calls", [None, [], [tool_call()], [tool_call(), tool_call()]]),
        (0.15, "reasoning", ["why", "why", None, 5]),
        (0.2, "refusal", [None, None, "no", 4]),
        (0.1, "audio", [None, {"id": "a"}, {}]),
        (0.1, "function_call", [None, {"name": "f", "arguments": "{}"}, {"name": "f"}]),
        (0.05, "task", ["t", None, 1]),
        (0.05, "tools", [None, [], [{"type": "function", "function": {"name": "f"}}], [{"type": "x"}]]),
        (0.1, "annotations", [[]]),
    ):
        if maybe(chance):
            m[field] = rng.choice(values)
    items = list(m.items())
    rng.shuffle(items)
    return dict(items)


lines = []
for _ in range(COUNT):
    m = json.loads(json.dumps(message()))
    lines.append(json.dumps({"message": m, "class": classify(json.loads(json.dumps(m)))}, separators=(",", ":")) + "\n")
with open(HERE / "messages.jsonl.gz", "wb") as raw, gzip.GzipFile("", "wb", 9, raw, 0) as packed:
    packed.write("".join(lines).encode())
