#!/usr/bin/env python3
"""Writes what transformers' Jinja makes of short templates that touch one thing each.

    python scripts/chat_template_fixtures.py

Writes sq-llava-data/tests/fixtures/chat_template/jinja.json. Needs transformers.
Exit status: 0 written, 2 cannot run.
"""

import json
import sys
from pathlib import Path

try:
    from transformers.utils.chat_template_utils import (
        _normalize_chat_messages,
        render_jinja_template,
    )
except ImportError as error:
    print(f"chat_template_fixtures: {error}; install transformers", file=sys.stderr)
    sys.exit(2)

TEMPLATES = [
 "{{ messages[0].content | tojson }}",
 "{{ messages | tojson }}",
 "{{ messages[1] | tojson(indent=2) }}",
 "{{ {'b': 1, 'a': [true, none, 1.5, 1e20, 'é<&>\\n']} | tojson }}",
 "{{ {'b': 1, 'a': 'é🦙'} | tojson(ensure_ascii=true, sort_keys=true, separators=(',', ':')) }}",
 "{{ messages[1] }}",
 "{{ messages[1].content | string }}{{ [1, 'a\\'b', none, true, 2.0] }}",
 "{{ 'x' ~ messages[1].content }}",
 "{{ messages[1].content | trim }}",
 "{{ {'a': 1} is sequence }} {{ 'a' is sequence }} {{ 'a' is iterable }} {{ none is iterable }} {{ 1 is iterable }} {{ nope is iterable }} {{ messages is iterable }} {{ {} is mapping }}",
 "{{ tools is none }} {{ tools is defined }} {{ documents is none }} {{ nope is defined }} {{ not tools }}",
 "[{{ nope }}]",
 "{{ 'a' + nope }}",
 "{{ nope.x }}",
 "{{ messages[0].nope }}|{{ messages[0].nope.deeper is defined }}",
 "{{ ' a b  c '.split() }}{{ 'a,b,c'.split(',', 1) }}{{ 'a,b,c'.rsplit(',', 1) }}{{ 'a b c'.split(maxsplit=1) }}",
 "{{ 'abc'.removeprefix('a') }}{{ 'abc'.removesuffix('c') }}{{ 'a-b-c'.partition('-') }}{{ 'a-b-c'.rpartition('-')[2] }}",
 "{{ 'xxaxx'.strip('x') }}{{ ' a\\x1f'.strip() }}{{ 'a\\n\\n'.rstrip('\\n') }}|{{ '\\n a'.lstrip() }}|",
 "{{ 'a\\r\\nb\\x0bc\\n'.splitlines() }}{{ 'a\\nb'.splitlines(true) }}",
 "{{ 'abcb'.index('b') }}{{ 'abcb'.rfind('b') }}{{ 'abc'.find('z') }}{{ [1,2].index(2) }}{{ 'aXb'.casefold() }}",
 "{{ 'abc'[0] }}{{ 'abc'[-1] }}{{ 'abc'[1:] }}{{ 'abc'[::-1] }}{{ messages[1:][0].role }}{{ messages[-1].role }}{{ messages[1:] | length }}",
 "{% for m in messages %}{% if loop.index0 == 1 %}{% continue %}{% endif %}{{ m.role }}{% if loop.last %}{% break %}{% endif %}{% endfor %}",
 "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
 "{% for m in messages %}{{ loop.previtem.role if loop.previtem is defined else '-' }}>{{ loop.nextitem.role if not loop.last }} {% endfor %}",
 "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}{{ messages[0].get('x', 'd') }}{{ messages[0].keys() | list }}",
 "{% set d = dict(a=1, b=2) %}{{ d }}{{ dict(d, c=3) }}",
 "{%- macro m(x, y='d') -%}({{ x }}{{ y }}){%- endmacro -%}{{ m(1) }}{{ m(2, y='e') }}",
 "{{ [1,2] + [3] }}{{ 'ab' * 2 }}{{ 7 // 2 }}{{ 7 / 2 }}{{ -7 // 2 }}{{ 2 ** 3 }}{{ 7 % 3 }}{{ 1.0 }}{{ 1e3 }}",
 "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='role') | join(', ') }}{{ messages | rejectattr('role', 'in', ['user']) | list | length }}",
 "{{ 'a' if false }}|{{ none }}|{{ true }}|{{ 'a' in 'abc' }}|{{ 'role' in messages[0] }}|{{ 1 in [1] }}",
 "    {% if true %}\n  x\n    {% endif %}\ny\n",
 "{# c #}\n  {# d #}\nz {% raw %}{{ a }}{% endraw %}",
 "a\n\n",
 "{{ raise_exception('no ' ~ 1) }}",
 "{{ 'a' + 1 }}", "{{ 1 + 'a' }}", "{{ 'a' + none }}", "{{ [1] + 'a' }}", "{{ none + 'a' }}", "{{ 'a' + messages[0] }}","{{ 'a' + true }}", "{{ 1.5 + 'a' }}",
 "{{ 'a b'.title() }}{{ 'a b'.capitalize() }}{{ 'A'.lower() }}{{ 'a' | upper }}{{ 'ab' | replace('a', 'c') }}{{ 'abc' | length }}{{ 'abc' | first }}{{ [1,2] | last }}",
 "{{ '%s' | format('b') }}{{ '{} {}'.format(1, 'x') }}",
 "{{ [3,1,2] | sort }}{{ {'b': 1, 'a': 2} | dictsort }}{{ [1,1,2] | unique | list }}{{ ['a','b'] | join('-') }}",
 "{{ 'a\\nb' | indent(2) }}|{{ 'a\\nb' | indent(2, true) }}|{{ 'x' | default('y') }}{{ nope | default('y') }}{{ '' | default('z', true) }}",
 "{% generation %}{{ messages[0].content }}{% endgeneration %}!",
 "{% for m in messages %}{%- generation -%}\n {{ m.role }} {%- endgeneration %}\n.{% endfor %}",
 "{% set x = 1 %}{% for i in [1] %}{% set x = 2 %}{% endfor %}{{ x }}",
 "{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set c %}t{{ a }}{% endset %}{{ c }}",
 "{{ bos_token is defined }}{{ bos_token }}{{ eos_token }}",
 "{{ messages[0]['content'][0:2] }}{{ messages[1]['content'][0]['type'] }}{{ messages[1].content[1]['text'] }}",
 "{% if messages[0].content is string and messages[0].content is not mapping %}s{% endif %}{{ 1 is number }}{{ true is boolean }}{{ 'a' is not none }}{{ 3 is odd }}{{ 3 is divisibleby 3 }}",
 "{{ messages[0].content.startswith('a') }}{{ messages[0].content.endswith(('x', 'z ')) }}{{ messages[0].content.count('a') }}{{ '12'.isdigit() }}{{ 'A'.isupper() }}",
 "{{ messages | length - 1 }}{{ (messages | length) > 1 and 'y' or 'n' }}{{ messages[0].role == 'user' }}{{ range(3) | list }}",
 "{{ x.append(1) }}", "{% set l = [] %}{% set _ = l.append(1) %}{{ l }}",
 "{% for x in nope %}a{% else %}none{% endfor %}{% for c in 'ab' %}{{ c }}.{% endfor %}",
 "{{ messages[5] }}|{{ messages[5] is defined }}|{{ 'abc'[9] }}",
 "{% if messages[0].reasoning_content %}{{ messages[0].thinking }}{% endif %}{{ messages[0] | length }}",
 "{{ '\\u00e9\\x41\\'' }}{{ \"a\\\\b\" }}",
 "{{ '<b>' | e }}{{ '<b>' | safe }}",
 "{% filter upper %}a{% endfilter %}{% with z = 3 %}{{ z }}{% endwith %}{{ loop is defined }}",
 "{{ 'a' ~ 1 ~ none ~ 1.5 ~ true }}", "{{ 1 == 1.0 }}{{ 'a' < 'b' }}{{ [1] == [1] }}{{ messages[0] == messages[0] }}",
 "{{ strftime_now('%Y') | length }}",
 "{{ 10 | string + 'x' }}{{ '5' | int + 1 }}{{ '1.5' | float }}{{ 1.25 | round(1) }}{{ [1,2,3] | sum }}{{ [3,1] | max }}",
 "{{ messages[0].content.strip().split('</think>')[-1].lstrip('\\n') }}",
 "{{ 'q' }}{%- if true %} a {% endif -%} b",
 "{{- 'q' -}}\n  {%+ if true %}x{% endif %}\n",
]

MESSAGES = [{'role':'user','content':'  aé "q" \' </think>\n\nz ','thinking':'t'},{'role':'assistant','content':[{'type':'image'},{'type':'text','text':"it's \xa0\u200d\n\t\\ é 🦙 \x07"}],'n':1,'f':0.5,'x':None},{'role':'user','content':'b'}]


def main():
    cases = []
    for template in TEMPLATES:
        messages = [_normalize_chat_messages(MESSAGES)]
        try:
            texts, _ = render_jinja_template(messages, chat_template=template, eos_token="</s>")
            cases.append([template, {"ok": texts[0]}])
        except Exception as error:  # whatever Python says
            cases.append([template, {"err": f"{type(error).__name__}: {error}"}])
    found = {"messages": MESSAGES, "cases": cases}
    folder = Path(__file__).parent.parent / "sq-llava-data/tests/fixtures/chat_template"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jinja.json").write_text(json.dumps(found, indent=0) + "\n")


if __name__ == "__main__":
    main()
