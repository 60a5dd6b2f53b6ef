"""What a model says after a prompt."""

from qpruner_core.pipeline.samples import continue_text


def test_a_prompt_without_tokens_is_continued_from_the_first_token_of_any_text(
    tiny_model, tiny_tokenizer
):
    assert tiny_tokenizer("")["input_ids"] == []
    said = continue_text(tiny_model, tiny_tokenizer, "", 3)
    assert said == continue_text(tiny_model, tiny_tokenizer, "<s>", 3)
    assert said != continue_text(tiny_model, tiny_tokenizer, "ba", 3)
