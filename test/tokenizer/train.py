"""Trains the small tokenizer of this folder and writes its golden file.

    pip install tokenizers==0.23.2 jinja2==3.1.6
    python test/tokenizer/train.py

It writes tokenizer.json, tokenizer_config.json and golden.json beside itself;
chat_template.jinja is written by hand. The text is Python's own documentation
and standard library, so the same Python (the committed files: CPython 3.11.7)
gives the same bytes again; another one gives another, equally useful tokenizer.

It is a stand-in for a model's tokenizer in demos and tests: byte-level BPE with
the pre-tokenizer pattern of the Qwen family and ChatML control tokens, so the
code takes the ways it takes with real ones, at a fiftieth of the size.
"""

import json
import pathlib
import sys
import sysconfig

import jinja2
import jinja2.sandbox
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = pathlib.Path(__file__).resolve().parent
VOCABULARY = 8192
CONTROL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# What each engine must encode as the Python package does.
TEXTS = [
    "",
    " ",
    "\n",
    "\r\n\r\n  x",
    "Hello, world!",
    "hello  world   again    and\tagain\t\tagain",
    "It's what we'd say, isn't it? WE'LL SEE'S",
    "0 1 12 123 1234567890 3.14159 1e-05 0xFF 1,000,000",
    "def prefill(tokens: list[int]) -> float:\n    return len(tokens) * 0.1\n",
    'for (int i = 0; i < n; i++) {\n\tprintf("%d\\n", i);\n}\n',
    '{"name": "get_weather", "arguments": {"city": "Zürich", "days": [1, 2, 3]}}',
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|><|im_end|><|endoftext|>",
    "broken <|im_start tokens <|im_end|",
    "a<|im_end|>b <|im_end|> c\n<|im_end|>\n",
    "Größe, naïve, façade, œuvre, Ærøskøbing",
    "Кэш префикса экономит время до первого токена.",
    "接頭辞キャッシュは最初のトークンまでの時間を短縮します。",
    "前缀缓存可以缩短首个词元的延迟。",
    "접두사 캐시는 첫 토큰 지연을 줄입니다.",
    "ذاكرة البادئة تقلل زمن أول رمز.",
    "מטמון הקידומת מקצר את הזמן",
    "प्रीफ़िक्स कैश पहले टोकन का समय घटाता है।",
    "🦊 🤷🏽‍♀️ 👩‍👩‍👧‍👦 🇨🇭 ☕️",
    "e\u0301 vs \u00e9, \u212b vs \u00c5, \ufb01 vs fi",
    "\u00a0nbsp\u2003em\u2028line\u2029para\u200bzero\ufeffbom",
    "\x00\x01\x1b[0m\x7f",
    "x" * 300,
    " " * 100 + "x",
    "\n" * 50,
    "ab" * 200 + " " + "12" * 50,
    "https://example.com/v1/chat/completions?stream=true&n=2#top",
    "| a | b |\n|---|---|\n| 1 | 2 |\n",
    "The service asks which instance has how much of the prompt cached, estimates the queued work, "
    "and tells the proxy which endpoint will give its first token soonest. " * 8,
]

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city, e.g. “Zürich” & <others>",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 1}},
            "required": ["city"],
        },
    },
}

# What the template must give as Jinja2 does.
CHATS = [
    {"messages": [{"role": "user", "content": "Hello"}], "add_generation_prompt": True},
    {"messages": [{"role": "user", "content": "Hello"}], "add_generation_prompt": False},
    {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " padded \n"}],
        "add_generation_prompt": True,
        "enable_thinking": False,
    },
    {
        "messages": [
            {"role": "user", "content": "1+1?"},
            {"role": "assistant", "content": "2"},
            {"role": "system", "content": "late"},
            {"role": "user", "content": ""},
        ],
        "add_generation_prompt": True,
        "enable_thinking": True,
    },
    {"messages": [{"role": "user", "content": "Weather?"}], "tools": [WEATHER], "add_generation_prompt": True},
    {
        "messages": [
            {"role": "system", "content": "Use tools."},
            {"role": "user", "content": "Weather?"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {"function": {"name": "get_weather", "arguments": {"city": 'Z"ü\\rich\n', "days": 2}}},
                    {"function": {"name": "other", "arguments": {"x": [1.0, 1e16, 1e-05, None, True], "e": {}}}},
                ],
            },
            {"role": "tool", "content": "sunny"},
        ],
        "tools": [WEATHER, WEATHER],
        "add_generation_prompt": True,
    },
    {"messages": [{"role": "robot", "content": "x"}], "add_generation_prompt": True},
]


def corpus():
    """Python's reference texts and the sources of its standard library, in a fixed order."""
    library = pathlib.Path(sysconfig.get_path("stdlib"))
    yield (library / "pydoc_data" / "topics.py").read_text(encoding="utf-8")
    for path in sorted(library.glob("*.py")):
        if path.stem in sys.stdlib_module_names:
            yield path.read_text(encoding="utf-8")


def train():
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(CONTROL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    # After the vocabulary, as in the models it stands for.
    tokenizer.add_special_tokens([tokenizers.AddedToken(t, normalized=False, special=True) for t in CONTROL_TOKENS])
    return tokenizer


def render(source, chat):
    """The template in the environment that transformers gives it."""

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    try:
        return {"text": environment.from_string(source).render(**chat)}
    except jinja2.exceptions.TemplateError as error:
        return {"error": str(error)}


def write_json(name, value, indent):
    (HERE / name).write_text(json.dumps(value, ensure_ascii=False, indent=indent) + "\n", encoding="utf-8")


def main():
    tokenizer = train()
    tokenizer.save(str(HERE / "tokenizer.json"), pretty=False)
    write_json(
        "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "model_max_length": 32768,
        },
        indent=2,
    )
    source = (HERE / "chat_template.jinja").read_text(encoding="utf-8")
    chats = []
    for chat in CHATS:
        rendered = render(source, chat)
        if "text" in rendered:
            rendered["ids"] = tokenizer.encode(rendered["text"], add_special_tokens=False).ids
        chats.append({"variables": chat, **rendered})
    texts = [{"text": text, "ids": tokenizer.encode(text).ids} for text in TEXTS]
    write_json("golden.json", {"texts": texts, "chats": chats}, indent=None)


if __name__ == "__main__":
    main()
