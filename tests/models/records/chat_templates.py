"""Chat templates as checkpoints publish them, cut to what our turns reach; control words are those of `tiny`."""

from transformers import PreTrainedTokenizerFast

from ..tiny import byte_tokenizer

# Llama 3.1: the day, and contents that are trimmed.
LLAMA = (
    "{% if not date_string is defined %}{% if strftime_now is defined %}"
    '{% set date_string = strftime_now("%d %b %Y") %}{% else %}{% set date_string = "26 Jul 2024" %}{% endif %}'
    "{% endif %}{{ '<|start|>Today: ' + date_string + '<|end|>' }}"
    "{% for m in messages %}{{ '<|start|>' + m['role'] + '\n\n' + m['content'] | trim + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n\n' }}{% endif %}"
)
# DeepSeek-R1 and its distillations: thoughts are cut from answers, and the prompt of an answer begins one.
R1 = (
    "{{ '<|start|>' }}{% for m in messages %}{% set content = m['content'] %}"
    "{% if m['role'] == 'user' %}{{ 'User:' + content }}{% elif m['role'] == 'system' %}{{ content }}{% else %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ 'Assistant:' + content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:<think>\n' }}{% endif %}"
)
# Qwen3: the last answer has an empty thought, and the prompt of one has none.
QWEN3 = (
    "{% for m in messages %}{{ '<|start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
# Mistral: no prompt of an answer, and a system's turn inside the last user's, if that comes last.
MISTRAL = (
    "{% if messages[0]['role'] == 'system' %}{% set said = messages[0]['content'] %}{% set rest = messages[1:] %}"
    "{% else %}{% set rest = messages %}{% endif %}{{ '<|start|>' }}{% for m in rest %}{% if m['role'] == 'user' %}"
    "{% if loop.last and said is defined %}{{ '[INST] ' + said + '\n\n' + m['content'] + '[/INST]' }}"
    "{% else %}{{ '[INST] ' + m['content'] + '[/INST]' }}{% endif %}"
    "{% else %}{{ ' ' + m['content'] + '<|end|>' }}{% endif %}{% endfor %}"
)
# Gemma: no system's turn, and a name of its own for the assistant.
GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<|start|>' + role + '\n' + m['content'] | trim + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>model\n' }}{% endif %}"
)


def chat_tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer
