"""An SMTP server with STARTTLS by Python's ssl, which is OpenSSL: starttls.py CERTIFICATE KEY [ADDRESS PORT]

Says its port, then a line for each message: version, cipher suite, whether the session was resumed, octets.
"""
import socket
import ssl
import sys


def talk(plain, context):
    tls = None
    # Buffered: a client that sends more before it has an answer to STARTTLS breaks its own handshake.
    stream, say = plain.makefile("rb"), plain.sendall
    say(b"220 mx.example.net ESMTP\r\n")
    while line := stream.readline():
        verb = line.split(None, 1)[0].upper()
        if verb == b"EHLO":
            offer = b"SIZE" if tls else b"STARTTLS"
            say(b"250-mx.example.net\r\n250-PIPELINING\r\n250 " + offer + b"\r\n")
        elif verb == b"STARTTLS" and not tls:
            say(b"220 go ahead\r\n")
            tls = context.wrap_socket(plain, server_side=True)
            stream, say = tls.makefile("rb"), tls.sendall
        elif verb == b"DATA":
            say(b"354 go ahead\r\n")
            octets = 0
            while (line := stream.readline()) not in (b".\r\n", b""):
                octets += len(line)
            say(b"250 accepted\r\n")
            what = (tls.version(), tls.cipher()[0], tls.session_reused) if tls else ("plain", "-", False)
            print(*what, octets, flush=True)
        elif verb == b"QUIT":
            say(b"221 bye\r\n")
            return
        else:
            say(b"250 ok\r\n")


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
address, port = sys.argv[3:] or ("127.0.0.1", "0")
listener = socket.create_server((address, int(port)))
print(listener.getsockname()[1], flush=True)
while True:
    client, _ = listener.accept()
    try:
        talk(client, context)
    except OSError as error:
        print("failed", error, flush=True)
    finally:
        client.close()
