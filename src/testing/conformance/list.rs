//! The one list of rules, and the macro that makes tests of it.

/// Hands the list to a macro, after what was given for it. A rule that needs what not every fixture can do says so,
/// in brackets.
#[doc(hidden)]
#[macro_export]
macro_rules! __storage_rules {
    ($then:path; $($given:tt)*) => { $then! { $($given)*
        bodies {
            [] an_empty_body_comes_back: "a body without an octet is a body: it is read as such, also after a reopen";
            [] nul_octets_in_bodies_come_back: "NUL octets and any others are part of a body, wherever they stand";
            [] a_body_of_50_mib_comes_back: "a body of 50 MiB is read octet for octet, also after a reopen";
            [] bodies_come_in_the_order_of_their_keys: "bodies are answered in the order of the keys, each key \
                as often as it was asked for; one that was never there is NotFound and the others are served";
            [] a_body_dies_with_its_last_recipient: "a body is there until the last recipient of its message is \
                settled, and is NotFound from then on";
        }
        insert {
            [] what_is_acknowledged_survives_a_reopen: "once a call has returned, what it wrote is there after the \
                store was opened again: mail, releases, state rows and outbox entries";
            [] envelopes_come_back_as_they_were: "all of an envelope comes back: no reverse-path and none of the \
                optional parts, or all of them, empty texts and NUL octets";
            [] recipients_come_back_as_they_were: "recipients come back with their attempts and their last failure, \
                whatever they were inserted with";
            [] due_times_are_exact_after_a_reopen: "an item is due at the microsecond it was given, before and after a \
                reopen: not claimed one before it";
            [] an_id_is_stored_once: "a message whose id is stored is a Duplicate, within one call too, and nothing \
                of it is stored";
            [] a_host_id_is_remembered_for_a_day_after_the_end: "an id that the host chose is a Duplicate for a day \
                after the last recipient was settled, and forgotten some time after";
            [] empty_messages_are_invalid: "a message without an item, or with an item without a recipient, is Invalid, \
                and no message of its call is stored";
            [] items_claimed_at_insert_are_leased_to_their_owner: "an item that was inserted for an owner is leased at \
                once: nobody else can claim it, and the lease returned for it can change it";
            [] item_ids_are_not_used_twice: "a new item has a larger id than any before, over reopens too";
        }
        claims {
            [] due_items_come_earliest_first: "a claim by due time returns what is due, the earliest first, up to its \
                limit, and the head of the lane as it is then";
            [] old_items_come_oldest_first: "a claim by age returns items without an expiry, the oldest first";
            [] expiring_items_come_earliest_first: "a claim by expiry returns the earliest expiry first";
            [] expiring_items_are_found_by_age_too: "items with an expiry are claimed by age apart from those without, \
                the oldest first, whatever their due time became";
            [] a_claim_answers_its_parts_in_order: "a claim returns the items of its parts in their order, and the head \
                of each lane it named once";
            [] claims_are_disjoint: "no two claims return the same item while its lease holds";
            [] named_items_are_claimed_unless_somebody_has_them: "a claim by name returns what is there and free, and \
                the claimer's own items under the leases it has";
            [] heads_cover_what_is_free_only: "heads show what nobody has leased, at once after every change";
            [] heads_page_in_lane_order: "heads come in the order of lanes, each once, page by page";
            [] an_unclaimed_item_is_as_it_was: "an item given back can be claimed again as it was, under a later lease";
        }
        fencing {
            [] a_reopen_ends_leases_or_keeps_them_until_their_time: "after a reopen of an exclusive store all items are \
                free, and no lease from before can change anything; in a store that engines share, an item is free, or its \
                lease holds until its time and not longer";
            [] leases_run_out_and_are_fenced: "a lease holds until its time; after it the item can be claimed, and from \
                then on the old lease is Stale";
            [] an_owner_extends_its_leases: "renew and claim extend all leases of their owner";
            [] a_late_renewal_takes_nothing_back: "what another owner has taken stays with it, whatever the first one \
                renews";
            [] a_stale_lease_can_change_nothing: "no change under a lease that is not current does anything, however it \
                became stale: it is Stale, and lists, heads and leases are as before";
            [] a_stale_change_leaves_the_rest_of_its_batch: "a Stale change is left out, the rest of its batch applied";
            [] one_batch_can_not_change_an_item_it_gave_back: "within one batch, too, a lease that was given back is \
                Stale";
        }
        concurrent {
            [] concurrent_claimers_never_share_an_item: "of many claimers at once, each item is returned to one, and \
                none is left out; again so when all leases have run out";
            [] nobody_sees_half_a_batch: "whoever reads while others write sees all of a call or nothing of it";
            [] a_reader_of_the_outbox_misses_nothing: "who goes on from the last position that was read meets each entry \
                once, however many report at once, whether what was read is acknowledged or not, and over reopens: no entry \
                appears at or before one that was read";
            [] an_id_inserted_by_many_at_once_is_stored_once: "of many who insert a message of the same id at once, \
                one has it stored, and all others are told that it is a Duplicate";
            [] a_change_and_a_claim_at_once_do_not_both_win: "of a change under a lease that ran out and another's claim, \
                both at once, one wins: the change is applied and the item not claimed, or it is claimed as it was and the \
                change Stale";
        }
        dropped {
            [] a_dropped_insert_is_stored_as_a_whole_or_not_at_all: "of an insert whose future is dropped every look shows \
                all or nothing, after a reopen always the same; the same messages inserted again are there once";
            [] a_dropped_commit_is_applied_as_a_whole_or_not_at_all: "of a commit whose future is dropped every look shows \
                all or nothing, after a reopen always the same; its leases hold until it is applied, and are Stale then";
            [] a_dropped_claim_loses_nothing: "what a claim took whose future is dropped can be claimed by others once the \
                lease has run out, all of it, and each item by one";
            [] dropped_reads_change_nothing: "reads whose futures are dropped leave everything as it is";
        }
        crash {
            [crashes] what_is_acknowledged_survives_a_crash: "once a call has returned, what it wrote is there though \
                the process ended right then and closed nothing, and outbox positions grow on; leases of an exclusive store are \
                void";
            [full_disks] a_call_without_room_applies_nothing: "an insert without room is Full and nothing of it is there; \
                reads go on, and the same insert is stored once there is room";
            [failed_flushes] a_failed_flush_stops_the_store: "a call whose flush failed is OutcomeUnknown, or Poisoned if \
                nothing of it was written, all that write after it Poisoned; after a reopen what was acknowledged is there, of \
                the first call all or nothing, and of those that were Poisoned nothing";
            [failed_flushes crashes] a_crash_after_a_failed_flush_loses_nothing: "what is acknowledged before a failed flush, \
                or once the store was opened again, survives crashes that follow, and what was found of the call that failed \
                stays as it was";
        }
        changes {
            [] a_release_is_due_exactly_then_even_after_a_reopen: "a released item is due at the microsecond it was \
                given, has the recipients as they were given, and is free";
            [] settling_twice_does_no_harm: "settling a recipient that is not there any more changes nothing and is \
                Applied as long as the lease is current";
            [] those_not_named_stay_under_the_lease: "recipients that a change does not name stay in the item, under its \
                lease";
            [] an_item_splits_in_groups_of_one_due_each: "each release becomes an item of its own; a recipient goes with \
                the first that names it";
            [] many_recipients_settle_in_one_change: "an item of 20,000 recipients can be settled in two changes";
        }
        atomic {
            [] a_batch_is_there_as_a_whole: "all changes of a large batch are applied, answered in order, and there \
                after a reopen";
            [] an_invalid_batch_changes_nothing: "a batch with a change that is Invalid changes nothing: no row, no \
                item, no lease";
            [] state_keys_have_a_length: "a state key of 512 octets is kept, a longer one Invalid";
        }
        outbox {
            [] outbox_entries_come_in_order: "outbox entries come in the order of their reports, with growing positions, \
                as they were given, page by page";
            [] outbox_payloads_come_back_as_they_were: "the payload of an outbox entry comes back octet for octet, also \
                after a reopen, be it empty or 100,000 octets long";
            [] outbox_entries_stay_until_they_are_acknowledged: "an entry is returned again and again, over reopens, \
                until it is acknowledged";
            [] acknowledged_outbox_entries_are_gone: "entries up to an acknowledged position are gone for good, later \
                ones are not; an old acknowledgement does no harm";
            [] outbox_positions_grow_after_a_reopen: "a new entry has a larger position than any before, also when the \
                outbox was empty in between";
        }
        rows {
            [] state_rows_are_kept_in_order: "state rows come in the order of their keys, octet by octet, with the last \
                value that was put";
            [] state_values_come_back_as_they_were: "the value of a state row comes back octet for octet, also after a \
                reopen, be it empty or 20,000 octets long";
            [] maintenance_takes_nothing_that_is_there: "maintenance, however late, takes no mail, no body, no state \
                row and no outbox entry";
            [] usage_counts_what_is_there: "usage counts items, outbox entries and octets as they are";
            [] empty_lanes_do_not_disturb: "a lane that became empty has no head, before and after maintenance, and can \
                be used again";
        }
        listing {
            [] a_message_lists_its_items: "the items of a message are listed, with what is leased marked";
            [] a_lane_lists_in_pages: "a lane is listed in the order of due times, then of ids, page by page";
            [] a_lane_lists_and_counts_all_it_holds: "a lane's list and count agree, whatever its items are: deferred, \
                leased, with an expiry";
            [] a_tag_lists_what_has_it: "a list by tag returns what has this tag with this value";
            [] a_rare_tag_is_found_far_away: "a page is full if it can be, however far apart its items lie";
            [] all_lists_all: "a list of all returns each item once, and goes on after an item that is gone";
        }
        model {
            [] random_sequences_agree_with_a_naive_model: "after every step of any sequence of calls, claims, heads, \
                lists and counts are what a look at all items gives";
        }
        damage {
            [damaged_bodies] a_damaged_body_fails_alone: "a damaged body is Corrupt; other bodies in the same call are \
                served, and its mail can be claimed and settled";
            [damaged_items] a_damaged_item_is_left_aside: "lists and claims answer with the other items, in pages as full \
                as ever; a list of a message of which nothing can be read is Corrupt; it is counted, and told once";
            [damaged_rows] a_damaged_state_row_is_left_aside: "state is answered with the other rows, in pages as full as \
                ever; it is told once, and can be written anew";
            [damaged_rows] a_damaged_outbox_entry_keeps_its_place: "an outbox entry that can not be read has an empty \
                payload in its place, is told once, and can be acknowledged as others";
        }
    } };
}

/// Makes one test for each [rule](crate::testing::conformance::rules) of [`Storage`](crate::storage::Storage), in a module
/// of this name, on the stores of a [`StorageUnderTest`](crate::testing::conformance::StorageUnderTest):
///
/// ```text
/// postrider::storage_conformance!(my_store: MyFixture);
/// postrider::storage_conformance!(my_store: MyFixture, without damaged_bodies, without damaged_rows);
/// ```
///
/// `without` is for what the fixture can not do: the rule is then shown as ignored.
/// [The guide](crate::testing::conformance) has an example.
#[macro_export]
macro_rules! storage_conformance {
    ($module:ident: $fixture:ty $(, without $missing:ident)* $(,)?) => {
        mod $module {
            #[allow(unused_imports)]
            use super::*;

            $($crate::__storage_without! { $missing })*
            $crate::__storage_rules! { $crate::__storage_tests; [$fixture] [$($missing)*] }
        }
    };
}

/// Refuses what is not known, so that nothing is misspelt.
#[doc(hidden)]
#[macro_export]
macro_rules! __storage_without {
    (crashes) => {};
    (damaged_bodies) => {};
    (damaged_items) => {};
    (damaged_rows) => {};
    (failed_flushes) => {};
    (full_disks) => {};
}

#[doc(hidden)]
#[macro_export]
macro_rules! __storage_tests {
    ([$fixture:ty] $missing:tt $($file:ident { $($needs:tt $rule:ident: $statement:literal;)* })*) => {
        $($($crate::__storage_test! { $needs $missing $missing [$fixture] $rule })*)*
    };
}

/// Looks for what a rule needs, one after the other, among what is missing: the second list is what is left to compare.
#[doc(hidden)]
#[macro_export]
macro_rules! __storage_test {
    ([] $left:tt $missing:tt [$fixture:ty] $rule:ident) => {
        #[test]
        fn $rule() {
            $crate::testing::conformance::run::<$fixture>(stringify!($rule));
        }
    };
    ([crashes $($more:ident)*] [crashes $($rest:ident)*] $missing:tt $fixture:tt $rule:ident) => {
        $crate::__storage_ignored! { "the fixture can not crash" $fixture $rule }
    };
    ([damaged_bodies $($more:ident)*] [damaged_bodies $($rest:ident)*] $missing:tt $fixture:tt $rule:ident) => {
        $crate::__storage_ignored! { "the fixture can not damage a body" $fixture $rule }
    };
    ([damaged_items $($more:ident)*] [damaged_items $($rest:ident)*] $missing:tt $fixture:tt $rule:ident) => {
        $crate::__storage_ignored! { "the fixture can not damage an item" $fixture $rule }
    };
    ([damaged_rows $($more:ident)*] [damaged_rows $($rest:ident)*] $missing:tt $fixture:tt $rule:ident) => {
        $crate::__storage_ignored! { "the fixture can not damage a row" $fixture $rule }
    };
    ([failed_flushes $($more:ident)*] [failed_flushes $($rest:ident)*] $missing:tt $fixture:tt $rule:ident) => {
        $crate::__storage_ignored! { "the fixture can not fail a flush" $fixture $rule }
    };
    ([full_disks $($more:ident)*] [full_disks $($rest:ident)*] $missing:tt $fixture:tt $rule:ident) => {
        $crate::__storage_ignored! { "the fixture can not fill the disk" $fixture $rule }
    };
    ($needs:tt [$other:ident $($rest:ident)*] $missing:tt $fixture:tt $rule:ident) => {
        $crate::__storage_test! { $needs [$($rest)*] $missing $fixture $rule }
    };
    ([$is_there:ident $($more:ident)*] [] $missing:tt $fixture:tt $rule:ident) => {
        $crate::__storage_test! { [$($more)*] $missing $missing $fixture $rule }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __storage_ignored {
    ($why:literal [$fixture:ty] $rule:ident) => {
        #[test]
        #[ignore = $why]
        fn $rule() {
            $crate::testing::conformance::run::<$fixture>(stringify!($rule));
        }
    };
}
