//! The rules of [`Storage`](super::Storage), one named test each, run for every store.

mod changes;
mod claims;
mod insert;
mod listing;
mod model;
mod rows;
mod support;

pub(crate) use support::*;

/// One test for each rule.
macro_rules! suite {
    ($store:ident: $fixture:ty) => {
        suite! { @rules $store: $fixture;
            insert::{
                bodies_come_back_as_they_were, what_is_acknowledged_survives_a_reopen, an_id_is_stored_once,
                a_host_id_is_remembered_for_a_day_after_the_end, empty_messages_are_invalid,
                items_claimed_at_insert_are_leased_to_their_owner, item_ids_are_not_used_twice,
            }
            claims::{
                due_items_come_earliest_first, old_items_come_oldest_first, expiring_items_come_earliest_first,
                expiring_items_are_found_by_age_too,
                claims_are_disjoint, a_reopen_drops_leases, leases_run_out_and_are_fenced,
                an_owner_extends_its_leases, named_items_are_claimed_unless_somebody_has_them,
                heads_cover_what_is_free_only, heads_page_in_lane_order, an_unclaimed_item_is_as_it_was,
            }
            changes::{
                a_release_is_due_exactly_then_even_after_a_reopen, settling_twice_does_no_harm,
                those_not_named_stay_under_the_lease, an_item_splits_in_groups_of_one_due_each,
                a_body_dies_with_its_last_recipient, a_stale_change_leaves_the_rest_of_its_batch,
                one_batch_can_not_change_an_item_it_gave_back, many_recipients_settle_in_one_change,
            }
            rows::{
                outbox_is_ordered_and_acknowledged, outbox_positions_grow_after_a_reopen,
                state_rows_are_kept_in_order, state_keys_have_a_length, usage_counts_what_is_there,
                empty_lanes_do_not_disturb,
            }
            listing::{
                a_message_lists_its_items, a_lane_lists_in_pages, a_lane_lists_and_counts_all_it_holds,
                a_tag_lists_what_has_it, a_rare_tag_is_found_far_away, all_lists_all,
            }
            model::{ random_sequences_agree_with_a_naive_model }
        }
    };
    (@rules $store:ident: $fixture:ty; $($file:ident::{ $($rule:ident),* $(,)? })*) => {
        mod $store {
            $($(
                #[tokio::test(start_paused = true)]
                async fn $rule() {
                    super::$file::$rule::<$fixture>().await;
                }
            )*)*
        }
    };
}

suite! { memory: super::InMemory }
#[cfg(feature = "disk")]
suite! { disk: super::OnDisk }
