"""What can go wrong between text and token ids.

TokenizerError
├── LocalTokenizerError         a tokenizer file on this node is missing, broken or not supported
│   └── LocalChatTemplateError  the model has no chat template, or it is broken, hostile or out of bounds
└── RemoteMessagesError         the chat template refused the messages of the client
"""


class TokenizerError(Exception):
    """Base of the errors of tokenizers and chat templates."""


class LocalTokenizerError(TokenizerError):
    """A tokenizer file on this node is missing, broken or not supported."""


class LocalChatTemplateError(LocalTokenizerError):
    """The model has no chat template, or it is broken, hostile or out of bounds."""


class RemoteMessagesError(TokenizerError):
    """The chat template refused the messages, in its own words."""
