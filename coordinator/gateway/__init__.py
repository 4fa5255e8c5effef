"""The public port: listener, gate, enrolment, and the SuperLink behind it."""
