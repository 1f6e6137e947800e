"""Tools, documents, arguments and open last messages give the text that transformers gives."""

import pytest
from jinja2 import TemplateError

from tokenmux.models.catalogue.tiny import byte_tokenizer
from tokenmux.models.text.template import TemplateInput, render

TEMPLATE = (
    "{{ bos_token }}{% if tools %}tools: {{ tools | tojson }}{% endif %}"
    "{% for document in documents or [] %}[{{ document.title }}: {{ document.text }}]{% endfor %}"
    "{% if think is defined and not think %}no thoughts{% endif %}"
    "{% for message in messages %}<|{{ message.role }}|>CONTENT<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
KEEPS, STRIPS = (
    TEMPLATE.replace("CONTENT", content)
    for content in ("{{ message.content }}", "{{ message.content | trim }}")
)
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": " It is "}]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
GIVEN = [
    TemplateInput(),
    TemplateInput(tools=(TOOL, TOOL)),
    TemplateInput(documents=({"title": "a", "text": "b"},)),
    TemplateInput(arguments={"think": False, "bos_token": "other"}),
    TemplateInput(continue_final_message=True),
    TemplateInput((TOOL,), ({"title": "a", "text": "b"},), {"think": True}, True),
]


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("template", [KEEPS, STRIPS], ids=["keeps", "strips"])
def test_a_template_gets_what_transformers_gives_it(template: str, given: TemplateInput) -> None:
    tokenizer = byte_tokenizer()
    theirs = tokenizer.apply_chat_template(
        [dict(message) for message in CHAT],
        tools=list(given.tools) or None,
        documents=list(given.documents) or None,
        chat_template=template,
        tokenize=False,
        add_generation_prompt=not given.continue_final_message,
        continue_final_message=given.continue_final_message,
        **given.arguments,
    )
    assert render(template, CHAT, tokenizer.special_tokens_map, given) == theirs
    assert CHAT[1]["content"] == " It is "


def test_a_message_that_the_template_leaves_out_cannot_be_continued() -> None:
    template = "{% for message in messages[:1] %}{{ message.content }}{% endfor %}"
    with pytest.raises(TemplateError, match="leaves out the message that is to be continued"):
        render(template, CHAT, {}, TemplateInput(continue_final_message=True))


def test_contents_in_parts_are_continued_too() -> None:
    parts = [{"role": "assistant", "content": [{"type": "text", "text": "It is"}]}]
    template = "{% for message in messages %}{{ message.content[0].text }}<|end|>{% endfor %}"
    assert render(template, parts, {}, TemplateInput(continue_final_message=True)) == "It is"
