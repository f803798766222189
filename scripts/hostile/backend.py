"""The clients' test double, for requests that nobody sane sends: what it does not understand it refuses with 400, as servers do."""

import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "clients"))

import mock_upstream  # noqa: E402


class Handler(mock_upstream.Handler):
    begun = False

    def send_response(self, *arguments):
        self.begun = True
        super().send_response(*arguments)

    def do_GET(self):
        try:
            super().do_GET()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def do_POST(self):
        self.begun = False
        try:
            super().do_POST()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            if self.begun:
                raise
            self.say(400, {"error": {"message": f"not understood: {type(error).__name__}", "code": "not_understood"}})


if __name__ == "__main__":
    mock_upstream.serve(Handler)
