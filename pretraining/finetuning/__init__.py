"""From conversations to a chat model: a block store that marks the answers, and training on those tokens."""
