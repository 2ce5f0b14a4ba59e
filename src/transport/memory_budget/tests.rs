//! Tests of the memory budget.

use super::*;

fn connection(budget: &Arc<MemoryBudget>) -> Arc<ConnectionBudget> {
    ConnectionBudget::new(budget, Peer::Unknown)
}

#[test]
fn reservations_are_bounded_and_released() {
    let budget = MemoryBudget::new(100);
    let [mut one, mut other] = [(); 2].map(|()| Reservation::empty(&budget));
    assert!(one.resize(60, 100) && !one.resize(101, 100) && !other.resize(41, 100) && other.resize(40, 100));
    assert!(!one.resize(61, 100) && one.resize(10, 100) && other.resize(90, 100) && !one.resize(11, 100));
    drop(other);
    assert!(!one.resize(91, 90) && one.resize(100, 100) && !one.resize(usize::MAX, 100));
    drop(one);
    assert_eq!(budget.used.load(Relaxed), 0);
}

#[test]
fn a_connection_that_uses_up_the_budget_does_not_starve_the_others() {
    let budget = MemoryBudget::new(10 * CALL);
    let [greedy, other] = [(); 2].map(|()| connection(&budget));
    let all: Vec<_> = std::iter::from_fn(|| greedy.admit(0)).collect();
    assert_eq!(all.len(), 8 + 10);
    let mut theirs: Vec<_> = std::iter::from_fn(|| other.admit(0)).collect();
    assert_eq!(theirs.len(), 8);
    assert!(!theirs[0].grow(1), "the budget is used up");
    drop(all);
    assert!(theirs[0].grow(10 * CALL) && !theirs[1].grow(1));
    drop(theirs);
    assert!(greedy.own_calls.load(Relaxed) == 0 && other.own_calls.load(Relaxed) == 0);
    assert_eq!(budget.used.load(Relaxed), 0);
}

#[test]
fn a_few_calls_of_other_services_need_no_room_in_the_budget() {
    let budget = MemoryBudget::new(CALL);
    let connection = connection(&budget);
    let waiting: Vec<_> = std::iter::from_fn(|| connection.admit(0)).collect();
    let mut others: Vec<_> = std::iter::from_fn(|| connection.admit_other(100)).collect();
    assert_eq!((waiting.len(), others.len()), (8 + 1, OWN_OTHERS));
    drop(waiting);
    others.extend(connection.admit_other(100));
    assert_eq!(others.len(), OWN_OTHERS + 1, "further ones are in the budget");
    drop(others);
    assert_eq!(connection.own_others.load(Relaxed) + connection.own_calls.load(Relaxed), 0);
    assert_eq!(budget.used.load(Relaxed), 0);
}

#[test]
fn large_calls_leave_room_for_ordinary_ones() {
    let budget = MemoryBudget::new(16 * LARGE);
    let connection = connection(&budget);
    let _own: Vec<_> = (0..8).map(|_| connection.admit(0).unwrap()).collect();
    let mut large: Vec<_> = (0..12).map(|_| connection.admit(0).unwrap()).collect();
    let grown = large.iter_mut().filter_map(|call| call.grow(LARGE).then_some(())).count();
    assert_eq!(grown, 11, "three quarters of sixteen, minus what the twelve took before");
    assert!(!large[0].grow(LARGE), "no room for more large ones");
    let ordinary: Vec<_> = std::iter::from_fn(|| connection.admit(0)).collect();
    assert!(ordinary.len() > 50, "{}", ordinary.len());
    large[0].shrink_to(0);
    assert!(large[1].grow(LARGE - 2 * CALL) || budget.used.load(Relaxed) > budget.for_large());
    drop((large, ordinary));
    assert_eq!(budget.used.load(Relaxed), 0);
}

#[test]
fn one_header_block_at_a_time_may_exceed_the_budget() {
    let budget = MemoryBudget::new(1000);
    let connections = [(); 3].map(|()| connection(&budget));
    let [mut one, mut two, mut three] = connections.each_ref().map(HeaderBlock::new);
    assert!(one.resize(300, 300) && two.resize(300, 300), "both have room");
    assert!(one.resize(500, 500), "exceeds 750");
    assert!(!two.resize(310, 310) && !three.resize(1, 1), "the others wait");
    assert!(one.resize(100_000, 100_000), "continues to its end");
    let unfinished = connections.each_ref().map(|c| c.unfinished_header_block().map(|u| u.bytes));
    assert_eq!(unfinished, [Some(100_000), None, None], "the peers of those that wait are not to blame");
    assert!(one.resize(0, 0) && two.resize(310, 310) && three.resize(600, 600), "the next one may exceed it");
    assert!(!one.resize(1000, 1000) && !two.resize(320, 320));
    drop(three);
    assert!(two.resize(320, 320) && one.resize(1000, 1000));
    drop((one, two));
    assert_eq!((budget.used.load(Relaxed), budget.exceeded.load(Relaxed)), (0, false));
}

#[test]
fn a_header_block_has_a_number_and_more_time_for_more_bytes() {
    let connection = connection(&MemoryBudget::new(1 << 20));
    let mut block = HeaderBlock::new(&connection);
    assert!(connection.unfinished_header_block().is_none());
    assert!(block.resize(10, 10) && block.resize(128 * 1024, 20));
    let first = connection.unfinished_header_block().unwrap();
    assert_eq!(first.time_allowed(Duration::from_secs(10)), Duration::from_secs(12));
    assert!(block.resize(0, 0) && connection.unfinished_header_block().is_none());
    assert!(block.resize(5, 5));
    let second = connection.unfinished_header_block().unwrap();
    assert!(second.number != first.number);
    assert_eq!(second.time_allowed(Duration::from_secs(10)), Duration::from_secs(10));
}

#[test]
fn a_response_is_counted_until_it_is_sent() {
    let (budget, count) = (MemoryBudget::new(4_000), 40);
    let connection = connection(&budget);
    let mut backlog = connection.backlog();
    let response = || CountedBuf::response(Bytes::from(vec![0; 100]), Arc::clone(&connection));
    let mut responses: Vec<_> = (0..count).map(|_| response()).collect();
    let expected = count * (RESPONSE + 100) - OWN_RESPONSES;
    assert_eq!((connection.excess(), connection.stuck_at()), (expected, Some(0)));
    backlog.account();
    assert!(connection.is_over() && connection.may_read());
    let mut last = responses.remove(0);
    last.advance(100);
    drop(CountedBuf::from(Bytes::from_static(b"not counted")));
    assert_eq!(connection.excess(), expected, "the last one is not dropped yet");
    drop(last);
    assert_eq!(connection.stuck_at(), Some(1));
    responses.truncate(26);
    backlog.account();
    assert!(connection.excess() > 0 && !connection.is_over());
    assert_eq!(budget.used.load(Relaxed), connection.excess());
    responses.extend((0..READ_WHILE_OVER / RESPONSE).map(|_| response()));
    assert!(connection.may_read(), "not accounted for yet");
    backlog.account();
    assert!(!connection.may_read(), "a peer that reads has a smaller backlog");
    drop(responses);
    assert_eq!((connection.excess(), connection.stuck_at()), (0, None));
    backlog.account();
    assert!(
        !connection.is_over()
            && connection.may_read()
            && !connection.is_scarce()
            && budget.used.load(Relaxed) == 0
    );
}
