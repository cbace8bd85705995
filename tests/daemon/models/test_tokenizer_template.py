import time
from datetime import UTC, datetime
from typing import Any

import pytest

from macmesh_daemon.models.chat_template import ChatTemplate
from macmesh_daemon.models.tokenizer_errors import LocalChatTemplateError, RemoteMessagesError
from support.transformers import bring_transformers_in

MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": "<hi> & 'you'"},
    {"role": "assistant", "content": "ok"},
]


def render(source: str, messages: list[dict[str, Any]] | None = None, **variables: Any) -> str:
    return ChatTemplate(source).render(MESSAGES if messages is None else messages, **variables)


#: What chat templates in the wild do, to be rendered as transformers renders it.
USUAL = [
    "{% for m in messages %}\n  {% if loop.last %}L{% endif %}{{ m.role ~ ': ' ~ m['role'] }}\n{% endfor %}",
    "{{ messages | tojson }}{{ tools | tojson(indent=2) }}",
    """{% set ns = namespace(n=0, text='') %}
    {% for m in messages %}
        {% set ns.n = ns.n + 1 %}
        {% set ns.text = ns.text ~ m.content[:2] %}
    {% endfor %}
    {{ ns.n }}{{ ns.text }}""",
    """{% for m in messages %}
        {% if m.role == 'assistant' %}{% continue %}{% endif %}
        {{ loop.index0 }}{% break %}
    {% endfor %}""",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "{%- macro show(m) -%}[{{ m.content | upper }}]{%- endmacro -%}{{ show(messages[0]) }}",
    "{{ messages | map(attribute='role') | join(', ') }}{{ messages[0].content.split(' ')[-1].strip('x') }}",
    "{% for m in messages | selectattr('role', 'equalto', 'user') %}{{ loop.length }}{% endfor %}",
    "{% for m in messages[::-1] %}{{ loop.revindex }}{{ loop.previtem.role if not loop.first }}{% endfor %}",
    "{{ '%s|%5d' % (messages[0].role, 42) }}{{ '{:>6}'.format('a') }}{{ '-' * 10 }}{{ 2 ** 10 }}",
    "{{ 'yes' if enable_thinking is defined and enable_thinking else 'no' }}{{ add_generation_prompt }}",
    "{{ messages[0].content.replace('hi', 'ho') | replace('you', 'we') }}{{ bos_token is defined }}",
    "{% for k, v in messages[0].items() %}{{ k }}={{ v }}{% endfor %}{{ messages | length }}{{ range(3) }}",
    "{% for a in [1, [2, [3]]] recursive %}{{ loop(a) if a is iterable else a }}{% endfor %}",
]


@pytest.mark.parametrize("source", USUAL)
@pytest.mark.parametrize(
    "variables", [{}, {"tools": [{"name": "é", "x": [1, None]}], "enable_thinking": True}]
)
def test_usual_templates_render_as_in_transformers(source: str, variables: dict[str, Any]) -> None:
    bring_transformers_in()
    from transformers.utils.chat_template_utils import render_jinja_template  # noqa: PLC0415  slow to import

    expected = render_jinja_template(
        conversations=[MESSAGES], chat_template=source, add_generation_prompt=True, **variables
    )
    assert render(source, **variables) == expected[0][0]


def test_the_date_comes_from_the_clock() -> None:
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}", now=lambda: datetime(2030, 1, 2, tzinfo=UTC))
    assert template.render(MESSAGES) == "02 Jan 2030"


def test_a_refusal_is_the_clients_fault_and_is_quoted() -> None:
    source = "{% if messages[0].role != 'system' %}{{ raise_exception('system must come first') }}{% endif %}"
    with pytest.raises(RemoteMessagesError, match="system must come first"):
        render(source)


def test_messages_hold_plain_data_only() -> None:
    with pytest.raises(RemoteMessagesError, match="JSON data only, got object"):
        render("x", [{"role": "user", "content": object()}])


@pytest.mark.parametrize("source", ["{% for %}", "{{ 'x' | no_such_filter }}", "{% unknown %}"])
def test_an_invalid_template_is_refused_when_it_is_read(source: str) -> None:
    with pytest.raises(LocalChatTemplateError, match="chat template"):
        ChatTemplate(source)


HOSTILE = [
    "{{ messages.__class__.__mro__ }}{{ ''.__class__.__base__.__subclasses__() }}",
    "{{ (messages | attr('append'))(1) }}",
    "{{ messages.append(1) }}",
    "{{ strftime_now.__code__.co_consts[0] }}",
    "{{ namespace.__init__.__globals__ }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{% import 'os' as os %}",
    "{% include '/etc/hostname' %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in messages | map('length') %}{{ b }}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{{ f(n - 1) ~ f(n - 1) if n }}{% endmacro %}{{ f(60) }}",
    "{% for a in [1] recursive %}{{ loop(range(99999)) if loop.depth < 3 }}{% endfor %}",
    "{% for a in range(40000) %}{{ range(99999) | sum }}{% endfor %}",
    "{% for a in range(40000) %}{{ range(99999) | select('odd') | list | length }}{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ range(10 ** 9) | list }}",
    "{{ 'x' * 10 ** 9 }}",
    "{{ 10 ** 9 * 'x' }}",
    "{{ [0] * (10 ** 9) }}",
    "{{ 9 ** 9 ** 9 }}",
    "{% set ns = namespace(t='xxxxxxxx') %}{% for i in range(60) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}",
    "{% set ns = namespace(t='xxxxxxxx') %}{% for i in range(60) %}{% set ns.t = ns.t + ns.t %}{% endfor %}",
    "{{ 'x' | center(999999999) }}",
    "{{ 'x'.ljust(999999999) }}",
    "{{ '%0999999999d' % 1 }}",
    "{{ '%*d' % (999999999, 1) }}",
    "{{ '%0999999999d' | format(1) }}",
    "{{ '{:>999999999}'.format(1) }}",
    "{{ '{:>{}}'.format(1, 999999999) }}",
    "{{ ('x' * 9999).replace('x', 'x' * 9999) }}",
    "{{ ('x' * 9999) | replace('x', 'x' * 9999) }}",
    "{{ ('x' * 9999).join(range(9999) | map('string') | list) }}",
    "{{ range(9999) | list | join('x' * 9999) }}",
    "{{ messages | tojson(indent=999999999) }}",
    "{{ 'x' | batch(999999999, 'y') | list }}",
    "{{ lipsum(999999) }}",
    "{% for i in range(99999) %}{{ 'x' * 999 }}{% endfor %}",
]


@pytest.mark.parametrize("source", HOSTILE)
def test_a_hostile_template_is_contained(source: str) -> None:
    started = time.process_time()
    with pytest.raises(LocalChatTemplateError, match="the chat template"):
        render(source)
    assert time.process_time() - started < 10


def test_a_hostile_template_gives_no_look_inside() -> None:
    assert (
        render("{{ strftime_now.__code__ }}|{{ namespace.__init__ }}|{{ raise_exception.__globals__ }}")
        == "||"
    )


def test_a_long_conversation_is_not_refused() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.role.upper() }}{% endfor %}", max_work=0)
    assert len(template.render(MESSAGES * 500)) == 4500 + 2000


def test_the_rendered_size_is_bounded() -> None:
    template = ChatTemplate("{{ messages[0].content }}", max_rendered_chars=10)
    assert template.render([{"content": "x" * 10}]) == "x" * 10
    with pytest.raises(LocalChatTemplateError, match="longer than 10"):
        template.render([{"content": "x" * 11}])
