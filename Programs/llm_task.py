"""One question to an OpenAI-compatible endpoint. The key goes into the request and nowhere else."""

import datetime
import email.utils
import http.client
import json
import os
import random
import time
import urllib.error
import urllib.parse
import urllib.request

from common_folder import number, whole_number

RETRIED = (429, 500, 502, 503, 504)
LONGEST_WAIT = 60.0
LARGEST_ANSWER = 16 << 20


class LlmError(Exception):
    """The endpoint could not be asked, or gave no answer."""


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host."""

    def redirect_request(self, *_):
        return None


OPENER = urllib.request.build_opener(NoRedirect)


def endpoint():
    """Where to ask and with which key."""
    base = (os.environ.get("OPENAI_BASE_URL") or "").strip().rstrip("/")
    if not base:
        raise LlmError("OPENAI_BASE_URL is not set; hint: set it where the device is started, for instance http://127.0.0.1:8000/v1")
    try:
        parts = urllib.parse.urlsplit(base)
        valid = parts.scheme in ("http", "https") and parts.hostname and not parts.username and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid or parts.query or parts.fragment or any(c.isspace() or not c.isprintable() for c in base):
        raise LlmError("OPENAI_BASE_URL: expected http://host/path or https://host/path, without user and query")
    key = (os.environ.get("OPENAI_API_KEY") or "").strip()
    # The HTTP library would print a key that fits no header.
    if any(not "!" <= c <= "~" for c in key):
        raise LlmError("OPENAI_API_KEY: holds white space or characters beyond ASCII")
    return base + "/chat/completions", key


def asked_wait(headers):
    """What Retry-After asks for, in seconds: a number or a date."""
    text = (headers.get("Retry-After") or "").strip()
    if text.isdigit():
        return float(text[:9])
    try:
        moment = email.utils.parsedate_to_datetime(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=datetime.timezone.utc)
        return max(0.0, (moment - datetime.datetime.now(datetime.timezone.utc)).total_seconds())
    except (TypeError, ValueError, IndexError):
        return None


def told(body, key):
    """What the endpoint says about an error, on one line and without the key."""
    text = body.decode("utf-8", "replace")
    try:
        error = json.loads(text)["error"]
        text = error["message"] if isinstance(error, dict) else error
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    text = str(text)
    if key:
        text = text.replace(key, "***")
    return " ".join(text.split())[:500] or "no message"


def post(url, key, question, timeout):
    """One request. Gives (answer, None, None), or (None, what went wrong, seconds the endpoint asks to wait)."""
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if key:
        headers["Authorization"] = "Bearer " + key
    request = urllib.request.Request(url, json.dumps(question).encode("utf-8"), headers, method="POST")
    try:
        with OPENER.open(request, timeout=timeout) as response:
            body = response.read(LARGEST_ANSWER + 1)
    except urllib.error.HTTPError as error:
        with error:
            try:
                body = error.read(64 << 10)
            except (OSError, http.client.HTTPException):
                body = b""
        problem = "the endpoint answered %d: %s" % (error.code, told(body, key))
        if error.code not in RETRIED:
            raise LlmError(problem) from None
        return None, problem, asked_wait(error.headers)
    except (OSError, http.client.HTTPException) as error:
        return None, "cannot reach %s: %s" % (url, getattr(error, "reason", None) or error or type(error).__name__), None
    if len(body) > LARGEST_ANSWER:
        raise LlmError("the answer is larger than %d bytes" % LARGEST_ANSWER)
    return body, None, None


def understood(body, key):
    """The text of an answer, with what else is worth keeping."""
    try:
        answer = json.loads(body.decode("utf-8"))
        choice = answer["choices"][0]
        text = choice["message"]["content"]
        if not isinstance(text, str):
            raise TypeError
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        raise LlmError("the answer is no chat completion: %s" % told(body[:2000], key)) from None
    return {"answer": text, "model": answer.get("model"), "finish_reason": choice.get("finish_reason"), "usage": answer.get("usage")}


def ask(prompt, model=None, system=None, temperature=None, max_tokens=None, timeout=120, attempts=4):
    """Asks and returns the answer."""
    for name, text in (("prompt", prompt), ("model", model), ("system", system)):
        if not (isinstance(text, str) or (text is None and name != "prompt")):
            raise ValueError("%s: expected a text, found %r" % (name, text))
    whole_number("attempts", attempts)
    if not number("timeout", timeout):
        raise ValueError("timeout: expected more than 0 seconds")
    url, key = endpoint()
    model = model or (os.environ.get("OPENAI_MODEL") or "").strip()
    if not model:
        raise LlmError("no model given; hint: set OPENAI_MODEL where the device is started, or the kwarg model")
    messages = [{"role": "system", "content": system}] if system is not None else []
    question = {"model": model, "messages": messages + [{"role": "user", "content": prompt}]}
    if temperature is not None:
        question["temperature"] = number("temperature", temperature)
    if max_tokens is not None:
        question["max_tokens"] = whole_number("max_tokens", max_tokens)

    for attempt in range(1, attempts + 1):
        body, problem, wait = post(url, key, question, timeout)
        if problem is None:
            result = understood(body, key)
            result["attempts"] = attempt
            print("%s answered %d characters at attempt %d" % (result["model"] or model, len(result["answer"]), attempt))
            return result
        if attempt < attempts:
            if wait is None:
                wait = 2 ** (attempt - 1) * random.uniform(0.9, 1.1)
            wait = min(wait, LONGEST_WAIT)
            print("attempt %d of %d: %s; again in %.1f s" % (attempt, attempts, problem, wait))
            time.sleep(wait)
    raise LlmError("%s (%d attempts)" % (problem, attempts))
