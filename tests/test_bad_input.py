"""Every kind of bad input has a test that shows what comes of it: the table of all, kept true.

What holds for all: wrong usage is exit code 2 before torch is imported, files and models 1, what will not fit 4; one
line, no traceback, nothing that was there before changed, no temporary left.

Not shown here: a network file system (stand-ins without links, locks and modes take its place), a disk that loses power
(a failed write, sync and rename at every place do), a laptop that sleeps (processes that are stopped do), and GPUs.
"""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).parent

TABLE = {
    "prompts: empty, or spaces": "cli/test_precedence.py::test_p1_an_empty_prompt_is_taken",
    "prompts: thousands of tokens": "engine/test_engine.py::test_words_that_are_left_out_are_told",
    "prompts: hundreds of tokens": "engine/test_engine.py::test_600_tokens_are_no_news",
    "prompts: a file of 100 MB": "cli/test_refusals.py::test_p3_a_prompt_file_of_100_mb_is_not_read_to_its_end",
    "prompts: NUL, other encodings": "cli/test_refusals.py::test_a_prompt_file_that_is_no_text_is_wrong_usage",
    "prompts: bytes that are no UTF-8": "cli/test_streams.py::test_p5_bytes_that_are_no_utf_8_are_wrong_usage",
    "prompts: any letters, kept in the picture": "images/test_write.py::test_any_prompt_round_trips",
    "prompts: two megabytes of text in a picture": "images/test_write.py::test_two_megabytes_of_text_are_capped",
    "numbers and sizes that are none": "cli/test_refusals.py::test_wrong_usage_is_one_line_and_exit_code_2",
    "numbers: the least that is allowed": "cli/test_precedence.py::test_n2_n8_s3_the_least_that_is_allowed_is_taken",
    "numbers: a strength out of bounds": "cli/test_refusals.py::test_a_strength_outside_0_to_1_is_wrong_usage",
    "numbers: a random seed": "cli/test_precedence.py::test_a_random_seed_differs_every_time_and_leaves_room_to_count",
    "numbers: more pictures than the disk has room for": (
        "cli/test_refusals.py::test_n12_many_pictures_need_room_on_the_disk"
    ),
    "sizes: a picture too wide for the ceiling": (
        "cli/test_refusals.py::test_s5_a_wide_picture_is_refused_before_any_work"
    ),
    "init images: no file": "cli/test_refusals.py::test_an_init_image_that_is_no_file_is_wrong_usage",
    "init images: no permission": "cli/test_refusals.py::test_i2_an_init_image_without_permission_is_a_failure",
    "init images: empty, cut, of other types, huge": (
        "cli/test_refusals.py::test_an_init_image_that_cannot_be_used_is_a_failure"
    ),
    "init images: any cut and any flipped bit": (
        "images/test_read.py::test_every_cut_and_every_flip_is_an_error_or_a_picture"
    ),
    "init images: 16 bits of grey": "images/test_read.py::test_16_bit_grey_is_scaled_not_clipped",
    "init images: CMYK": "images/test_read.py::test_cmyk_jpeg",
    "init images: other modes": "images/test_read.py::test_other_modes_of_png",
    "init images: colours that are hidden": "images/test_read.py::test_hidden_colours_stay_hidden",
    "init images: a palette with a transparent colour": "images/test_read.py::test_palette_with_transparency",
    "init images: a header that claims much": "images/test_read.py::test_a_huge_header_is_refused_before_decoding",
    "init images: more than the cap": "images/test_read.py::test_the_own_cap_is_checked_before_decoding",
    "init images: a bomb in a text": "images/test_read.py::test_a_bomb_where_the_orientation_may_be_is_an_error",
    "init images: an address": "images/test_read.py::test_a_url_is_a_bad_request_and_nothing_connects",
    "init images: the output itself": "cli/test_refusals.py::test_i20_the_init_image_is_not_overwritten_without_force",
    "init images: what a picture claims of its size": (
        "images/test_told.py::test_a_picture_that_claims_to_be_huge_is_one_line"
    ),
    "ceilings: units": "cli/test_precedence.py::test_m1_a_ceiling_is_read_as_documented_and_said_in_bytes",
    "ceilings: below the baseline": (
        "cli/test_refusals.py::test_m5_a_ceiling_below_the_interpreter_and_torch_names_them"
    ),
    "ceilings: below what a stage needs": (
        "cli/test_refusals.py::test_m6_a_ceiling_below_what_a_stage_needs_names_stage_need_and_what_would_do"
    ),
    "ceilings: above the machine": (
        "cli/test_precedence.py::test_m7_a_ceiling_above_the_machine_or_its_container_is_warned_of"
    ),
    "ceilings: the least, and a little less": (
        "full/test_ceilings.py::test_the_ceiling_that_is_offered_survives_and_a_little_less_is_refused"
    ),
    "ceilings: crossed while denoising": "app/test_run.py::test_m9_a_crossing_names_stage_step_footprint_and_ceiling",
    "ceilings: a worker that grows": "app/test_degrade.py::test_a_worker_that_grows_is_left_before_it_crosses",
    "ceilings: a watchdog that fails": "app/test_run.py::test_m10_a_watchdog_that_fails_stops_the_run_and_says_so",
    "ceilings: on a GPU": "plan/test_ceiling.py::test_m11_on_cuda_the_ceiling_is_the_gpu_s",
    "models: parts missing": "models/test_folder.py::test_all_that_is_missing_is_named_at_once",
    "models: an empty folder": "models/test_reference.py::test_an_empty_folder_lacks_everything",
    "models: a name that is not there": "cli/test_refusals.py::test_a_missing_model_is_exit_code_3",
    "models: configs that name code": (
        "models/test_configs.py::test_a_setting_that_names_code_is_refused_whatever_its_value"
    ),
    "models: somebody's own pipeline": (
        "models/test_folder.py::test_an_index_of_another_pipeline_or_of_somebody_s_code_is_refused"
    ),
    "models: a header longer than its file": (
        "models/test_header.py::test_a_file_that_cannot_hold_its_header_is_refused"
    ),
    "models: weights cut, or longer": (
        "models/test_header.py::test_data_shorter_or_longer_than_the_header_says_is_refused_with_both_sizes"
    ),
    "models: a header that is a bomb": "models/test_header.py::test_a_header_bomb_is_refused_without_being_parsed",
    "models: the same key twice": "models/test_header.py::test_the_same_key_twice_is_refused_at_every_depth",
    "models: gaps and overlaps": "models/test_header.py::test_gaps_and_overlaps_are_refused",
    "models: tensors described wrongly": "models/test_header.py::test_a_tensor_described_wrongly_is_refused_by_name",
    "models: weights of another type": (
        "models/test_folder.py::test_weights_of_another_type_are_refused_by_the_tensor_s_name"
    ),
    "models: weights of another family": (
        "engine/test_folders_out_there.py::test_a_model_of_another_family_is_told_by_its_tensors"
    ),
    "models: NaN in the weights": "engine/test_engine.py::test_weights_that_are_not_finite_end_the_run_in_their_stage",
    "models: pickles by any name": "models/test_header.py::test_a_pickle_under_another_name_is_refused_and_not_run",
    "models: links that lead nowhere": (
        "models/test_reference.py::test_a_dangling_link_is_a_missing_model_and_a_loop_is_refused"
    ),
    "models: links of the Hub's cache": "models/test_folder.py::test_a_snapshot_of_links_into_another_folder_is_opened",
    "models: no permission": "models/test_folder.py::test_a_model_without_permission_is_refused",
    "models: a file that shrinks while it is mapped": (
        "app/test_run.py::test_a_worker_that_dies_is_explained_in_one_line"
    ),
    "models: a disk that fails": "models/test_folder.py::test_a_disk_that_fails_while_it_is_read_is_one_line",
    "models: on a RAM disk": (
        "engine/test_ram_disk.py::test_no_page_of_the_model_stays_mapped_and_the_picture_is_the_same"
    ),
    "models: merges that end early": "models/test_tokenizer_files.py::test_merges_that_end_early_are_missed",
    "models: ten million tokens": (
        "models/test_tokenizer_files.py::test_a_file_of_ten_million_entries_is_refused_without_being_parsed"
    ),
    "outputs: no folder, a file for it, a long name": (
        "cli/test_refusals.py::test_an_output_that_cannot_be_written_is_refused_before_any_work"
    ),
    "outputs: no permission": "cli/test_refusals.py::test_a_folder_without_permission_is_refused_before_any_work",
    "outputs: a read-only disk": "images/test_write.py::test_a_read_only_mount",
    "outputs: a file that is there": "images/test_write.py::test_an_existing_file_stays",
    "outputs: a file that comes meanwhile": (
        "images/test_write.py::test_a_file_that_appears_meanwhile_stays_and_ours_is_rescued"
    ),
    "outputs: unknown suffixes": "images/test_write.py::test_an_unknown_suffix_names_the_known",
    "outputs: a full disk": "images/test_write.py::test_a_disk_that_fills_up_mid_write",
    "outputs: a failure at any operation": "cli/test_faults.py::test_a_disk_that_fails_at_any_operation_loses_nothing",
    "outputs: a kill while it is written": (
        "images/test_write.py::test_a_killed_run_leaves_no_picture_and_is_swept_up_after"
    ),
    "outputs: disks without links, locks and modes": (
        "cli/test_faults.py::test_on_a_disk_without_links_locks_and_modes_all_is_drawn"
    ),
    "outputs: streams that are closed": "cli/test_streams.py::test_o8_a_closed_stream_is_no_failure",
    "outputs: a reader that has gone": "cli/test_streams.py::test_o8_a_reader_that_has_gone_ends_the_program_quietly",
    "signals: Ctrl-C, SIGTERM, SIGHUP": (
        "cli/test_signals.py::test_a_signal_ends_the_run_with_one_line_and_nothing_left"
    ),
    "signals: a second one": "cli/test_signals.py::test_g2_a_second_signal_does_not_wait_for_the_cleaning_up",
    "signals: SIGKILL of the host": "cli/test_signals.py::test_g4_the_worker_dies_with_a_host_that_is_killed",
    "signals: SIGKILL at any instant": (
        "full/test_kills.py::test_a_run_that_is_killed_at_any_instant_is_resumed_with_the_same_bytes"
    ),
    "signals: stopped for long": "cli/test_signals.py::test_a_run_that_stood_still_for_longer_than_any_timeout_goes_on",
    "signals: a terminal that is closed": (
        "cli/test_signals.py::test_a_terminal_that_is_closed_ends_the_run_and_leaves_it_to_be_resumed"
    ),
    "at once: runs into one folder": "images/test_write.py::test_processes_at_once_lose_nothing",
    "at once: two pulls": "app/test_pull.py::test_two_pulls_at_once_end_well_and_each_byte_comes_once",
    "at once: a pull that is killed": (
        "app/test_pull.py::test_a_pull_that_is_stopped_leaves_nothing_that_is_taken_for_whole"
    ),
    "at once: a model that changes while it draws": (
        "engine/test_changing_files.py::test_weights_that_change_while_they_stream_end_the_run"
    ),
    "at once: benches": "cli/test_surroundings.py::test_c4_two_benches_at_once_are_each_told_of_the_other",
    "around: no network": "cli/test_surroundings.py::test_e2_drawing_opens_no_connection",
    "around: any locale": "cli/test_surroundings.py::test_e3_names_have_the_bytes_that_were_typed_in_any_locale",
    "around: no terminal": "cli/test_progress.py::test_e5_without_a_terminal_there_is_a_plain_line_a_stage",
    "around: a terminal of no width": "cli/test_progress.py::test_e5_a_terminal_of_no_width_is_no_failure",
    "around: a device that is not there": "cli/test_precedence.py::test_e6_auto_says_why_it_took_the_cpu",
    "numbers that are none while drawing": (
        "engine/test_engine.py::test_a_decode_that_is_not_finite_is_an_error_when_the_others_are_there"
    ),
    "the same seed under any plan": "engine/test_same_picture.py::test_no_plan_changes_the_picture",
    "anything at all": "fuzz/test_fuzz.py::test_any_input_is_taken_or_refused_in_one_line",
}
"""Kinds of bad input, and a test of each."""


@pytest.mark.parametrize("kind", TABLE)
def test_there_is_a_test_of_it(kind: str) -> None:
    file, _, name = TABLE[kind].partition("::")
    assert f"def {name}" in (TESTS / file).read_text("utf-8")
