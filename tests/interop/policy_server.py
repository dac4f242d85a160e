"""MTA-STS policies over HTTPS by Python's http.server: policy_server.py ADDRESS PORT CERTIFICATE KEY FOLDER

Serves the files of FOLDER by name: what a client asks `mta-sts.NAME` for lies in FOLDER/NAME.
"""
import http.server
import pathlib
import ssl
import sys

address, port, certificate, key, folder = sys.argv[1:]


class Policies(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        host = self.headers["Host"].split(":")[0]
        file = pathlib.Path(folder, host.removeprefix("mta-sts."))
        if self.path != "/.well-known/mta-sts.txt" or not file.is_file():
            self.send_error(404)
            return
        content = file.read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
server = http.server.ThreadingHTTPServer((address, int(port)), Policies)
# The handshake is the thread's: one client that says nothing keeps nobody waiting.
server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
server.serve_forever()
