"""A conversation partner after Weizenbaum's ELIZA: rules that turn a sentence round and hand it back.

`reply` is a pure function of one text: no history, no clock, no random numbers. Where a rule has several replies, a
checksum of the text picks one, so that the partner varies and still repeats itself exactly.

Source: J. Weizenbaum, "ELIZA", Communications of the ACM 9:1, 1966, for the method; the rules are our own.
"""

from __future__ import annotations

import re
import zlib
from typing import NamedTuple

HEARD_CHARACTERS = 2_000
"""What the rules look at. A longer text is heard by its beginning."""

ECHO_CHARACTERS = 120
"""The most that is handed back of somebody's words."""


class _Rule(NamedTuple):
    pattern: re.Pattern[str]
    replies: tuple[str, ...]
    """With `{0}` for what the pattern's group heard, turned round."""


def _rule(pattern: str, *replies: str) -> _Rule:
    return _Rule(re.compile(pattern, re.IGNORECASE), replies)


_END = r"([^.!?;\n]+)"

_RULES = (
    _rule(
        r"^\W*(?:hello|hi|hey|good (?:morning|evening|day))\b",
        "Hello! It's good to have you here. What is on your mind?",
        "Hi there. I'm all ears. What shall we talk about?",
        "Good to see you. How has your day been so far?",
    ),
    _rule(
        r"\b(?:bye|goodbye|good night|see you)\b",
        "Goodbye! I enjoyed our talk. I'll be here, exactly as I am now.",
        "Take care. Come back whenever you like; I never sleep and I never change.",
    ),
    _rule(
        r"\b(?:thanks|thank you|thx)\b",
        "You're welcome. Is there anything else you would like to turn over?",
        "My pleasure. What comes next?",
    ),
    _rule(
        r"\bmy name is ([^\W\d_]{1,40})",
        "A pleasure to meet you, {0}. I'm the demo; I have no name of my own. What brings you here, {0}?",
        "Hello, {0}! That is a fine name. What would you like to talk about?",
    ),
    _rule(
        r"\b(?:who|what) are you\b|\byour name\b",
        "I'm the model that comes with penstock: a handful of rules, no network, no memory. "
        "Type `/help` to see what else I can do.",
        "Nobody in particular: a few rules that turn your words round. But do go on, I like the company.",
    ),
    _rule(
        r"\bpenstock\b",
        "A penstock is the pipe that leads water from a reservoir down to the turbine, with a gate at its top. "
        "Here it leads words. What do you want to send through it?",
        "In a mill or a dam, the penstock decides how much water goes through and when it stops. "
        "Streams of words need the same care, don't you think?",
    ),
    _rule(
        r"\b(?:joke|funny|laugh)\b",
        "Why did the stream cross the valley? Because nobody had cancelled its scope.",
        "A task walks into a nursery and says: I can't leave until all my friends are done. "
        "The nursery says: that is rather the point.",
        "I know a joke about backpressure, but you'll have to wait until you are ready for it.",
    ),
    _rule(
        r"\bi(?: a|')m (?:feeling |so |very |really |a bit )?(sad|unhappy|depressed|lonely|tired|stressed|worried|afraid|angry)\b",
        "I'm sorry to hear that you are {0}. When did it begin?",
        "Being {0} is heavy to carry alone. What would lighten it a little?",
        "Thank you for telling me. What do you think makes you {0}?",
    ),
    _rule(
        r"\bi(?: a|')m (?:feeling |so |very |really )?(happy|glad|excited|fine|well|great|good|proud)\b",
        "How lovely that you are {0}! What brought it about?",
        "I'm glad. Tell me more about what makes you {0}.",
    ),
    _rule(
        r"\bi feel " + _END,
        "Do you often feel {0}?",
        "When you feel {0}, what do you usually do?",
        "What is it like to feel {0}?",
    ),
    _rule(
        r"\bi (?:hate|dislike|can't stand) " + _END,
        "What is it about {0} that bothers you?",
        "Was there ever a good side to {0}?",
    ),
    _rule(
        r"\bi (?:want|need|wish|would like) to " + _END,
        "What keeps you from it?",
        "Why do you want to {0}?",
        "Suppose you were to {0} tomorrow. What would you do the day after?",
    ),
    _rule(
        r"\bi (?:want|need|wish for|would like) " + _END,
        "What would change if you had {0}?",
        "Why do you want {0}?",
        "Suppose you got {0} tomorrow. What would you do first?",
    ),
    _rule(
        r"\bi can(?:'|no)?t " + _END,
        "What would it take for you to {0}?",
        "Perhaps you could {0} if you began with something small. What is the smallest step?",
    ),
    _rule(
        r"\bi (?:think|believe|guess) (?:that )?" + _END,
        "What makes you think that {0}?",
        "Has there been a time when you thought otherwise than that {0}?",
    ),
    _rule(
        r"\bi (?:love|like|enjoy) " + _END,
        "What is it about {0} that you like best?",
        "How did you come to like {0}?",
    ),
    _rule(
        r"\bi(?: a|')m " + _END,
        "How long have you been {0}?",
        "How do you feel about being {0}?",
        "Did you come here because you are {0}?",
    ),
    _rule(
        r"\bbecause " + _END,
        "Is that the whole reason?",
        "What other reasons might there be, besides that {0}?",
    ),
    _rule(
        r"\bmy (mother|father|brother|sister|son|daughter|wife|husband|partner|friend|boss|cat|dog)\b",
        "Tell me more about your {0}.",
        "What does your {0} mean to you?",
        "How do you and your {0} get on?",
    ),
    _rule(
        r"\bcan you " + _END,
        "If I could {0}, what would you do with it?",
        "I'm only a few rules, so I had better not promise to {0}. What do you hope to get from it?",
    ),
    _rule(
        r"\bare you " + _END,
        "Would it please you if I were {0}?",
        "What makes you wonder whether I'm {0}?",
    ),
    _rule(
        r"\byou(?: a|')re " + _END,
        "What makes you say that I'm {0}?",
        "Perhaps I am {0}. Does it matter to you?",
    ),
    _rule(
        r"^\W*why\b" + _END + r"\?",
        "Why do you think?",
        "That is a good question, and I have no good answer. What is your own guess?",
    ),
    _rule(
        r"^\W*(?:what|how|when|where|who|which)\b.*\?",
        "What answer would please you most?",
        "I wonder too. What have you found out so far?",
        "I only have words, not facts. What do you already know about it?",
    ),
    _rule(
        r"^\W*(?:yes|yeah|yep|sure|of course|ok|okay)\b",
        "You sound certain. What makes you so?",
        "Good. Tell me more.",
    ),
    _rule(
        r"^\W*(?:no|nope|never|not really)\b",
        "Why not?",
        "That's a clear answer. What would have to be different for a yes?",
    ),
    _rule(
        r"\b(?:always|never|everybody|nobody)\b",
        "Really without exception? Can you think of one?",
        "That is a big word. When did you last see it happen?",
    ),
    _rule(
        r"\?\s*$",
        "What do you think yourself?",
        "Why do you ask?",
        "I could guess, but I would rather hear your view first.",
    ),
)

_OTHERWISE = (
    "I see. Please go on.",
    "Tell me more about that.",
    "Interesting. What does it mean to you?",
    "And how do you feel about it?",
    "Let us stay with that for a moment. What is the most important part of it?",
    "What made you think of that just now?",
)

_SILENCE = "I didn't catch any words. Say something, or type `/help` to see what I can do."

_TURNED = {
    "i": "you",
    "me": "you",
    "my": "your",
    "mine": "yours",
    "myself": "yourself",
    "am": "are",
    "i'm": "you're",
    "i've": "you've",
    "i'll": "you'll",
    "i'd": "you'd",
    "you": "me",
    "your": "my",
    "yours": "mine",
    "yourself": "myself",
    "you're": "I'm",
    "you've": "I've",
    "you'll": "I'll",
}


def reply(text: str) -> str:
    """Return the partner's answer to a text: always the same answer to the same text."""
    heard = " ".join(text[:HEARD_CHARACTERS].replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").split())
    if not heard:
        return _SILENCE
    chance = zlib.crc32(text.encode("utf-8", "surrogatepass"))
    for pattern, replies in _RULES:
        if found := pattern.search(heard):
            return replies[chance % len(replies)].format(*map(_turn_round, found.groups()))
    return _OTHERWISE[chance % len(_OTHERWISE)]


def _turn_round(words: str) -> str:
    """Turn somebody's words round: "my cat and me" becomes "your cat and you"."""
    words = words.strip()
    if len(words) > ECHO_CHARACTERS:
        words = words[:ECHO_CHARACTERS].rsplit(" ", 1)[0] + "…"
    return " ".join(_TURNED.get(word.lower(), word) for word in words.split())
