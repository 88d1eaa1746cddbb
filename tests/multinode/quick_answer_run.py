"""Starts pretrain.py with links between machines that break after 1 s without an answer, and takes its flags."""

import socket

import pretrain
from pretraining.cli.program import run_program
from pretraining.training.stopping import link_sockets

if __name__ == "__main__":
    link_sockets.TCP_OPTIONS |= {socket.TCP_KEEPIDLE: 1, socket.TCP_KEEPINTVL: 1, socket.TCP_USER_TIMEOUT: 1000}
    run_program(pretrain.main)
