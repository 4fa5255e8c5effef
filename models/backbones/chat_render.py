"""Renders one chat template within limits; `chat_trial` starts this file as a process of its own."""

import json
import resource
import sys
from typing import Any


def main() -> None:
    """Reads the template and its limits from stdin; prints a failure in one line, or whether both turns are said."""
    asked = json.load(sys.stdin)
    from transformers.utils.chat_template_utils import render_jinja_template

    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + asked["bytes"],) * 2)
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + 1 + asked["seconds"]
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    try:
        rendered: Any = render_jinja_template(
            [asked["messages"]], chat_template=asked["template"], **asked["variables"]
        )
        text = rendered[0][0]
        is_said = len(text) <= asked["most"] and all(message["content"] in text for message in asked["messages"])
        print(json.dumps({"is_said": is_said}))
    except Exception as err:
        told = " ".join(str(err).split()) or type(err).__name__
        print(json.dumps({"failed": told[:200]}))


if __name__ == "__main__":
    main()
