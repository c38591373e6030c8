"""A read-only web server for Common/Results: GET and HEAD, no links followed, no hidden files, no way out of the folder."""

import html
import http.server
import json
import os
import shutil
import signal
import socket
import stat
import sys
import threading
import urllib.parse

from common_folder import common

CONNECTIONS = 64
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def open_below(root, parts):
    """Opens a path below a folder, one step at a time and never through a link, so that nothing can lead out of it."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts:
            deeper = os.open(part, flags, dir_fd=handle)
            os.close(handle)
            handle = deeper
        return handle
    except BaseException:
        os.close(handle)
        raise


def parts_of(path):
    """The steps of a request's path; None if it asks for anything but plain visible names."""
    try:
        text = urllib.parse.unquote(urllib.parse.urlsplit(path).path, errors="strict")
    except ValueError:
        return None
    if not text.startswith("/"):
        return None
    parts = [part for part in text.split("/") if part]
    if any(part.startswith(".") or "\\" in part or not part.isprintable() for part in parts):
        return None
    return parts


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one connection."""

    server_version = "Results"
    sys_version = ""
    timeout = 30

    def do_GET(self):
        self.answer(body=True)

    def do_HEAD(self):
        self.answer(body=False)

    def refuse(self):
        # The request's body is not read: the connection cannot be used again.
        self.close_connection = True
        self.say(405, "only GET and HEAD are served\n", headers={"Allow": "GET, HEAD"})

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = refuse

    def answer(self, body):
        if not self.host_is_ours():
            return self.say(421, "this address is not served under that name\n", body)
        parts = parts_of(self.path)
        if parts is None:
            return self.say(404, "not found\n", body)
        try:
            handle = open_below(self.server.root, parts)
        except OSError:
            return self.say(404, "not found\n", body)
        with open(handle, "rb", closefd=True) if stat.S_ISREG(os.fstat(handle).st_mode) else Folder(handle) as found:
            if isinstance(found, Folder):
                if not found.is_folder:
                    return self.say(404, "not found\n", body)
                return self.say(200, found.page(parts), body, kind="text/html; charset=utf-8")
            size = os.fstat(handle).st_size
            kind = "application/json" if parts[-1].endswith(".json") else "application/octet-stream"
            self.head(200, kind, size)
            if body:
                shutil.copyfileobj(Limited(found, size), self.wfile)

    def host_is_ours(self):
        """On loopback only the machine's own names count: a page elsewhere must not read results through a name of its own."""
        if self.server.server_address[0] not in LOOPBACK:
            return True
        try:
            name = urllib.parse.urlsplit("//" + self.headers.get("Host", "localhost")).hostname
        except ValueError:
            return False
        return name in LOOPBACK

    def say(self, code, text, body=True, kind="text/plain; charset=utf-8", headers=None):
        data = text.encode("utf-8", "replace")
        self.head(code, kind, len(data), headers)
        if body and self.command != "HEAD":
            self.wfile.write(data)

    def head(self, code, kind, size, headers=None):
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(size))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format, *args):
        line = "%s %s" % (self.client_address[0], format % args)
        print("".join(c if c.isprintable() else "?" for c in line))


class Folder:
    """An open folder, or whatever else is no regular file."""

    def __init__(self, handle):
        self.handle = handle
        self.is_folder = stat.S_ISDIR(os.fstat(handle).st_mode)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.handle)

    def page(self, parts):
        """A list of what is in the folder, the newest names first."""
        title = html.escape("/".join(["Results"] + parts))
        lines = ["<!doctype html><meta charset=utf-8><title>%s</title><h1>%s</h1><ul>" % (title, title)]
        if parts:
            lines.append('<li><a href="../">..</a>')
        with os.scandir(self.handle) as entries:
            shown = sorted(((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries
                            if not entry.name.startswith(".") and not entry.is_symlink()), reverse=True)
        for name, folder in shown:
            slash = "/" if folder else ""
            target = "/" + "/".join(urllib.parse.quote(os.fsencode(part), safe="") for part in parts + [name]) + slash
            lines.append('<li><a href="%s">%s</a>' % (target, html.escape(name + slash)))
        return "\n".join(lines + ["</ul>", ""])


class Limited:
    """At most so many bytes of a file: it may grow while it is sent."""

    def __init__(self, file, size):
        self.file = file
        self.left = size

    def read(self, length):
        data = self.file.read(min(length, self.left))
        self.left -= len(data)
        return data


class Server(http.server.ThreadingHTTPServer):
    """A thread for each connection, a bounded number of them."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, host, port, root):
        self.root = root
        self.free = threading.BoundedSemaphore(CONNECTIONS)
        self.served = 0
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), Handler)

    def server_bind(self):
        # Without the reverse look-up of the base class, which may take seconds.
        socketserver_bind = super(http.server.HTTPServer, self).server_bind
        socketserver_bind()
        self.server_name, self.server_port = self.server_address[:2]

    def process_request(self, request, client_address):
        if not self.free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        self.served += 1
        super().process_request(request, client_address)

    def process_request_thread(self, request, client_address):
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.free.release()

    def handle_error(self, request, client_address):
        error = sys.exc_info()[1]
        if not isinstance(error, (ConnectionError, TimeoutError, socket.timeout)):
            print("%s: %s: %s" % (client_address[0], type(error).__name__, error), file=sys.stderr)


def settings():
    """Host and port: from the trigger, else from the environment, else loopback and 8080."""
    kwargs = json.loads(os.environ.get("AIOS_KWARGS") or "{}")
    unknown = sorted(set(kwargs) - {"host", "port"})
    if unknown:
        raise ValueError("unknown kwarg %r; expected host, port" % unknown[0])
    host = kwargs.get("host", os.environ.get("WEB_SERVER_HOST") or "127.0.0.1")
    port = kwargs.get("port", os.environ.get("WEB_SERVER_PORT") or 8080)
    if not isinstance(host, str) or not host:
        raise ValueError("host: expected an address, found %r" % (host,))
    if isinstance(port, bool) or not str(port).isdigit() or int(port) > 65535:
        raise ValueError("port: expected a number from 0 to 65535, found %r" % (port,))
    return host, int(port)


def main():
    try:
        host, port = settings()
        root = common() / "Results"
        root.mkdir(parents=True, exist_ok=True)
        server = Server(host, port, str(root))
    except (OSError, ValueError, OverflowError) as error:
        print("web_server: %s" % error, file=sys.stderr)
        return 1

    def stop(*_):
        # shutdown() waits for the loop below, which this handler interrupts: it needs a thread of its own.
        threading.Thread(target=server.shutdown, daemon=True).start()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    shown = "[%s]" % host if ":" in host else host
    print("serving %s at http://%s:%d/" % (root, shown, server.server_address[1]))
    with server:
        server.serve_forever(poll_interval=0.1)
    print("stopped after %d connections" % server.served)
    if os.environ.get("AIOS_RESULT"):
        with open(os.environ["AIOS_RESULT"], "w", encoding="utf-8") as file:
            json.dump({"connections": server.served}, file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
