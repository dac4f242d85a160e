"""An SMTP server by aiosmtpd, on an address and port. What it meets is appended to a file, a line of JSON each."""

import asyncio
import base64
import json
import sys

from aiosmtpd.smtp import SMTP, AuthResult

host, port, log = sys.argv[1], int(sys.argv[2]), sys.argv[3]
# Passwords by name, and arguments of aiosmtpd's SMTP.
users, options = json.loads(sys.argv[4]), json.loads(sys.argv[5])


def note(**what):
    with open(log, "a") as file:
        file.write(json.dumps(what) + "\n")


def authenticate(server, session, envelope, mechanism, data):
    login, password = data.login.decode(), data.password.decode()
    note(auth=mechanism, login=login)
    return AuthResult(success=users.get(login) == password, handled=False)


class Handler:
    async def handle_MAIL(self, server, session, envelope, address, mail_options):
        note(mail=address, options=mail_options)
        envelope.mail_from = address
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        note(to=envelope.rcpt_tos, content=base64.b64encode(envelope.content).decode())
        return "250 OK"


async def main():
    loop = asyncio.get_running_loop()
    make = lambda: SMTP(Handler(), hostname="mx.example", authenticator=authenticate, loop=loop, **options)
    server = await loop.create_server(make, host, port)
    await server.serve_forever()


asyncio.run(main())
