"""Prompt templates of the published benchmarks, as their repositories state them.

LongBench (THUDM/LongBench ``config/dataset2prompt.json``, MIT), InfiniteBench (OpenBMB/InfiniteBench
``src/prompt.py``, the templates for base models, MIT), BABILong (booydar/babilong ``babilong/prompts.py``,
Apache-2.0). RULER's files hold whole prompts.
"""

# Quoted text: breaking its lines further would hide what it says.
# ruff: noqa: E501

from __future__ import annotations

_PASSAGES = "Answer the question based on the given passages. Only give me the answer and do not output any other words."
_MULTI_PASSAGE = f"{_PASSAGES}\n\nThe following are given passages.\n{{context}}\n\n{_PASSAGES}\n\nQuestion: {{input}}\nAnswer:"
_PHRASE = "as concisely as you can, using a single phrase if possible. Do not provide any explanation."
_PHRASE_OR_SENTENCE = (
    "as concisely as you can, using a single phrase or sentence if possible. If the question cannot be answered "
    'based on the information in the article, write "unanswerable". If the question is a yes/no question, answer '
    '"yes", "no", or "unanswerable". Do not provide any explanation.'
)

LONGBENCH = {
    "narrativeqa": "You are given a story, which can be either a novel or a movie script, and a question. Answer "
    f"the question {_PHRASE}\n\nStory: {{context}}\n\nNow, answer the question based on the story {_PHRASE}\n\n"
    "Question: {input}\n\nAnswer:",
    "qasper": "You are given a scientific article and a question. Answer the question "
    f"{_PHRASE_OR_SENTENCE}\n\nArticle: {{context}}\n\n Answer the question based on the above article "
    f"{_PHRASE_OR_SENTENCE}\n\nQuestion: {{input}}\n\nAnswer:",
    "multifieldqa_en": "Read the following text and answer briefly.\n\n{context}\n\nNow, answer the following "
    "question based on the above text, only give me the answer and do not output any other words.\n\n"
    "Question: {input}\nAnswer:",
    "hotpotqa": _MULTI_PASSAGE,
    "2wikimqa": _MULTI_PASSAGE,
    "musique": _MULTI_PASSAGE,
    "gov_report": "You are given a report by a government agency. Write a one-page summary of the report.\n\n"
    "Report:\n{context}\n\nNow, write a one-page summary of the report.\n\nSummary:",
    "qmsum": "You are given a meeting transcript and a query containing a question or instruction. Answer the query "
    "in one or more sentences.\n\nTranscript:\n{context}\n\nNow, answer the query based on the above meeting "
    "transcript in one or more sentences.\n\nQuery: {input}\nAnswer:",
    "multi_news": "You are given several news passages. Write a one-page summary of all news. \n\nNews:\n{context}"
    "\n\nNow, write a one-page summary of all the news.\n\nSummary:",
    "trec": "Please determine the type of the question below. Here are some examples of questions.\n\n{context}\n"
    "{input}",
    "triviaqa": "Answer the question based on the given passage. Only give me the answer and do not output any other "
    "words. The following are some examples.\n\n{context}\n\n{input}",
    "samsum": "Summarize the dialogue into a few short sentences. The following are some examples.\n\n{context}\n\n"
    "{input}",
    "passage_count": "There are some paragraphs below sourced from Wikipedia. Some of them may be duplicates. Please "
    "carefully read these paragraphs and determine how many unique paragraphs there are after removing duplicates. "
    "In other words, how many non-repeating paragraphs are there in total?\n\n{context}\n\nPlease enter the final "
    "count of unique paragraphs after removing duplicates. The output format should only contain the number, such "
    "as 1, 2, 3, and so on.\n\nThe final answer is: ",
    "passage_retrieval_en": "Here are 30 paragraphs from Wikipedia, along with an abstract. Please determine which "
    "paragraph the abstract is from.\n\n{context}\n\nThe following is an abstract.\n\n{input}\n\nPlease enter the "
    'number of the paragraph that the abstract is from. The answer format must be like "Paragraph 1", '
    '"Paragraph 2", etc.\n\nThe answer is: ',
    "lcc": "Please complete the code given below. \n{context}Next line of code:\n",
    "repobench-p": "Please complete the code given below. \n{context}{input}Next line of code:\n",
}

_OPTIONS = "A. {OPTION_A}\nB. {OPTION_B}\nC. {OPTION_C}\nD. {OPTION_D}"
_HIDDEN = "There is an important info hidden inside a lot of irrelevant text. Find it"
_QUIZ = "I will quiz you about the important information there."

INFINITEBENCH = {
    "passkey": f"{_HIDDEN} and memorize them. {_QUIZ}\n\n{{context}}\n\n{{input}}\n\nThe pass key is",
    "number_string": f"{_HIDDEN}. {_QUIZ}\n\n{{context}}\n\n{{input}}\n\nThe sequence of digits is",
    "kv_retrieval": "Extract the value corresponding to the specified key in the JSON object below.\n\n{context}\n\n"
    "{input}",
    "longbook_sum_eng": "Summarize the book below.\n\n{context}\n\nSummary:",
    "longbook_choice_eng": f"Read the book and answer the question.\n\n{{context}}\n\nQuestion: {{input}}\n{_OPTIONS}"
    "\n\nThe letter of the correct answer is",
    "longbook_qa_eng": "Read the book and answer the question. Be very concise in your answer.\n\n{context}\n\n"
    "Question: {input}\nAnswer:",
    "math_find": "{prefix}\n\n{context}\n\n{input}",
    "math_calc": "Let us calculate the intermediate values of an expression.\n\nExpression: 1 + 3 + 4\nValues: "
    "[1, 4, 8]\n\nExpression: 8 - 3 + 2 - 4\nValues: [8, 5, 7, 3]\n\nExpression: {context}\nValues:",
    "code_run": "There is a function called {func} in the following Python code.\n\n{context}\n\nPlease compute the "
    "exact value of {func_call}. The value of {func_call} is",
    "code_debug": "Following is a Python code where exactly one of the functions/methods has a deliberate error that "
    f"makes it crash.\n\n{{context}}\n\nOptions:\n{_OPTIONS}\n\nThe correct option is:",
    "longdialogue_qa_eng": "Below is a dialogue script where one random occurrence of a character name is replaced "
    'with "$$MASK$$", and you should try to guess who that character is.\n\n{context}\n\nThe name that has been '
    "replaced with $$MASK$$ is likely",
}

BABILONG = "{instruction}\n{examples}\n{post_prompt}\n<context>\n{context}\n</context>\nQuestion: {question}"
_BASED_ON_FACTS = "You need to answer the question based only on the information from the facts."
_CARRIED = (
    "If a person got an item in the first location and travelled to the second location the item is also in the "
    "second location. If a person dropped an item in the first location and moved to the second location the item "
    "remains in the first location"
)


def _examples(*pairs: tuple[str, str], between: str = "\n") -> str:
    return between.join(f"<example>\n{text}\nAnswer: {answer}\n</example>" for text, answer in pairs)


# Instruction, examples, and what is said after them, for each task.
BABILONG_PROMPTS = {
    "qa1": (
        "I will give you context with the facts about positions of different persons hidden in some random text and "
        f"a question. {_BASED_ON_FACTS} If a person was in different locations, use the latest location to answer "
        "the question.",
        _examples(
            (
                "Charlie went to the hallway. Judith come back to the kitchen. Charlie travelled to balcony. Where is "
                "Charlie?",
                "The most recent location of Charlie is balcony.",
            ),
            (
                "Alan moved to the garage. Charlie went to the beach. Alan went to the shop. Rouse travelled to "
                "balcony. Where is Alan?",
                "The most recent location of Alan is shop.",
            ),
            between="\n\n",
        ),
        "Always return your answer in the following format: The most recent location of ’person’ is ’location’. Do "
        "not write anything else after that.",
    ),
    "qa2": (
        "I give you context with the facts about locations and actions of different persons hidden in some random "
        f"text and a question.{_BASED_ON_FACTS}\n{_CARRIED}.",
        _examples(
            (
                "Charlie went to the kitchen. Charlie got a bottle. Charlie moved to the balcony. Where is the bottle?",
                "The bottle is in the balcony.",
            ),
            (
                "Alan moved to the garage. Alan got a screw driver. Alan moved to the kitchen. Where is the screw "
                "driver?",
                "The screw driver is in the kitchen.",
            ),
        ),
        "Always return your answer in the following format: The ’item’ is in ’location’. Do not write anything else "
        "after that.",
    ),
    "qa3": (
        "I give you context with the facts about locations and actions of different persons hidden in some random "
        f"text and a question. {_BASED_ON_FACTS}\n{_CARRIED}",
        _examples(
            (
                "John journeyed to the bedroom.Mary grabbed the apple. Mary went back to the bathroom. Daniel "
                "journeyed to the bedroom. Daniel moved to the garden. Mary travelled to the kitchen. Where was the "
                "apple before the kitchen?",
                "Before the kitchen the apple was in the bathroom.",
            ),
            (
                "John went back to the bedroom. John went back to the garden. John went back to the kitchen. Sandra "
                "took the football. Sandra travelled to the garden. Sandra journeyed to the bedroom. Where was the "
                "football before the bedroom?",
                "Before the kitchen the football was in the garden.",
            ),
        ),
        "Always return your answer in the following format: Before the $location_1& the $item$ was in the "
        "$location_2$. Do not write anything else after that.",
    ),
    "qa4": (
        "I will give you context with the facts about different people, their location and actions, hidden in some "
        f"random text and a question. {_BASED_ON_FACTS}",
        _examples(
            (
                "The hallway is south of the kitchen. The bedroom is north of the kitchen. What is the kitchen south "
                "of?",
                "bedroom",
            ),
            (
                "The garden is west of the bedroom. The bedroom is west of the kitchen. What is west of the bedroom?",
                "garden",
            ),
        ),
        "Your answer should contain only one word - location. Do not write anything else after that.",
    ),
    "qa5": (
        "I will give you context with the facts about locations and their relations hidden in some random text and a "
        f"question. {_BASED_ON_FACTS}",
        _examples(
            (
                "Mary picked up the apple there. Mary gave the apple to Fred. Mary moved to the bedroom. Bill took "
                "the milk there. Who did Mary give the apple to?",
                "Fred",
            ),
            (
                "Jeff took the football there. Jeff passed the football to Fred. Jeff got the milk there. Bill "
                "travelled to the bedroom. Who gave the football?",
                "Jeff",
            ),
            (
                "Fred picked up the apple there. Fred handed the apple to Bill. Bill journeyed to the bedroom. Jeff "
                "went back to the garden. What did Fred give to Bill?",
                "apple",
            ),
        ),
        "Your answer should contain only one word. Do not write anything else after that. Do not explain your answer.",
    ),
}
