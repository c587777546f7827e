use super::saved::Cache;
use super::*;

const NAME: &str = "site.example";

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// An answer with these addresses of both IP versions.
fn answer(texts: &[&str], ttl: u64) -> Answer {
    let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = texts.iter().map(|text| ip(text)).partition(IpAddr::is_ipv4);
    let v4 = v4.iter().filter_map(|ip| ip.to_string().parse().ok()).collect();
    let v6 = v6.iter().filter_map(|ip| ip.to_string().parse().ok()).collect();
    Answer { v4: Some(v4), v6: Some(v6), ttl: Duration::from_secs(ttl), problem: None }
}

fn failure() -> Answer {
    Answer { v4: None, v6: None, ttl: Duration::ZERO, problem: Some("no answer".into()) }
}

/// A book in which the name is asked for.
fn asked(book: &mut Book, now: Instant) {
    book.want([NAME].into_iter(), now);
    assert_eq!(book.next_to_ask().as_deref(), Some(NAME));
}

/// What is in use after an answer, first one first.
fn used(book: &mut Book, answer: Answer, now: Instant) -> Vec<String> {
    book.answer(NAME, answer, now);
    let used: Vec<Endpoints> = book.in_use().map(|(_, used)| used).collect();
    used.iter().flat_map(Endpoints::iter).map(|ip| ip.to_string()).collect()
}

#[test]
fn an_address_in_use_is_kept_while_it_is_in_the_answer() {
    let (mut book, mut now) = (Book::default(), Instant::now());
    for (found, expected) in [
        (&["192.0.2.1", "192.0.2.2", "2001:db8::1"][..], &["192.0.2.1", "2001:db8::1"][..]),
        (&["192.0.2.2", "2001:db8::2", "2001:db8::1", "192.0.2.1"], &["192.0.2.1", "2001:db8::1"]),
        (&["192.0.2.3", "2001:db8::1", "192.0.2.2"], &["192.0.2.3", "2001:db8::1"]),
        (&["192.0.2.3"], &["192.0.2.3"]),
        // There is no such name, or nobody says so.
        (&[], &["192.0.2.3"]),
        (&["2001:db8::9"], &["2001:db8::9"]),
    ] {
        asked(&mut book, now);
        assert_eq!(used(&mut book, answer(found, 0), now), expected);
        now += Duration::from_secs(60);
    }
    asked(&mut book, now);
    assert_eq!(used(&mut book, failure(), now), ["2001:db8::9"]);
}

#[test]
fn what_is_not_known_takes_nothing_away() {
    let (mut book, now) = (Book::default(), Instant::now());
    asked(&mut book, now);
    used(&mut book, answer(&["192.0.2.1", "2001:db8::1"], 0), now);
    let half = Answer { v6: None, ..answer(&["192.0.2.2"], 0) };
    assert_eq!(used(&mut book, half, now), ["192.0.2.2", "2001:db8::1"]);
}

#[test]
fn names_are_asked_for_again_when_their_time_is_up() {
    let start = Instant::now();
    let again_after = |answers: &[Answer]| {
        let (mut book, mut now) = (Book::default(), start);
        for answer in answers {
            asked(&mut book, now);
            book.answer(NAME, answer.clone(), now);
            let asked_at = now;
            while book.known[NAME].turn != Turn::Waiting {
                now += Duration::from_secs(1);
                book.want([NAME].into_iter(), now);
            }
            if answer == answers.last().expect("one") {
                return (now - asked_at).as_secs();
            }
        }
        unreachable!("there are answers")
    };
    for (ttl, expected) in [(0, 5), (30, 30), (86400, 300)] {
        assert_eq!(again_after(&[answer(&["192.0.2.1"], ttl)]), expected);
    }
    let failures = |count: usize| {
        again_after(
            &(0..count).map(|n| Answer { problem: Some(n.to_string()), ..failure() }).collect::<Vec<_>>(),
        )
    };
    assert_eq!([1, 2, 3, 4, 5, 9].map(failures), [5, 10, 20, 40, 60, 60]);
}

#[test]
fn few_are_asked_for_at_one_time_and_new_ones_first() {
    let (mut book, now) = (Book::default(), Instant::now());
    let old: Vec<String> = (0..100).map(|number| format!("old{number}.example")).collect();
    book.want(old.iter().map(String::as_str), now);
    let first: Vec<String> = std::iter::from_fn(|| book.next_to_ask()).collect();
    assert_eq!(first.len(), AT_ONCE);
    let all = || old.iter().map(String::as_str).chain(["new.example"]);
    book.want(all(), now);
    assert_eq!(book.next_to_ask(), None);
    book.answer(&first[0], failure(), now);
    assert_eq!(book.next_to_ask().as_deref(), Some("new.example"));
    assert_eq!(book.next_to_ask(), None);
    // Nobody is asked for twice, and everybody in the end.
    let mut seen = std::collections::BTreeSet::from_iter(first.iter().cloned());
    let mut under_way = VecDeque::from_iter(first.into_iter().skip(1).chain(["new.example".to_owned()]));
    while let Some(name) = under_way.pop_front() {
        book.answer(&name, failure(), now);
        while let Some(next) = book.next_to_ask() {
            assert!(seen.insert(next.clone()), "{next}");
            under_way.push_back(next);
        }
    }
    assert_eq!(seen.len(), 100);
}

#[test]
fn names_that_nobody_wants_are_forgotten() {
    let (mut book, now) = (Book::default(), Instant::now());
    asked(&mut book, now);
    assert!(book.want([].into_iter(), now).is_empty(), "it is being asked for");
    book.answer(NAME, answer(&["192.0.2.1"], 0), now);
    assert_eq!(book.want([].into_iter(), now), [NAME]);
    assert_eq!((book.in_use().count(), book.next_to_ask()), (0, None));
}

#[test]
fn another_address_is_tried_of_those_that_are_usable() {
    let (mut book, now) = (Book::default(), Instant::now());
    asked(&mut book, now);
    used(&mut book, answer(&["192.0.2.1", "192.0.2.2", "2001:db8::1"], 0), now);
    assert!(book.has_choice(NAME));
    let mut dead = ip("192.0.2.1");
    let mut order = Vec::new();
    for _ in 0..3 {
        let next = book.try_another(NAME, dead, |_| true).expect("another one");
        dead = next.iter().next().expect("an address");
        order.push(dead.to_string());
    }
    assert_eq!(order, ["192.0.2.2", "2001:db8::1", "192.0.2.1"]);
    // There is no way to IPv6 addresses.
    book.try_another(NAME, ip("192.0.2.1"), |ip| ip.is_ipv4());
    let next = book.try_another(NAME, ip("192.0.2.2"), |ip| ip.is_ipv4());
    assert_eq!(next.and_then(|next| next.iter().next()), Some(ip("192.0.2.1")));
    assert_eq!(book.try_another(NAME, ip("192.0.2.1"), |_| false), None);
    assert_eq!(book.try_another(NAME, ip("192.0.2.77"), |_| true), None, "not one of them (any more)");
    // What is in use now stays so.
    book.try_another(NAME, ip("192.0.2.1"), |_| true);
    let kept = used(&mut book, answer(&["192.0.2.1", "192.0.2.2", "2001:db8::1"], 0), now);
    assert_eq!(kept.first().map(String::as_str), Some("192.0.2.2"));
}

#[test]
fn an_address_that_is_assumed_is_in_use_until_the_name_resolves() {
    let (mut book, now) = (Book::default(), Instant::now());
    assert_eq!(book.assume(NAME, ip("192.0.2.9")).iter().next(), Some(ip("192.0.2.9")));
    asked(&mut book, now);
    assert_eq!(used(&mut book, failure(), now), ["192.0.2.9"]);
    // Who has an address needs no other.
    assert_eq!(book.assume(NAME, ip("192.0.2.10")).iter().next(), Some(ip("192.0.2.9")));
    assert_eq!(used(&mut book, answer(&["192.0.2.1"], 0), now), ["192.0.2.1"]);
}

#[test]
fn what_is_in_use_is_remembered() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = Cache::new(folder.path(), "a");
    assert!(cache.load().is_empty());
    let (mut book, now) = (Book::default(), Instant::now());
    asked(&mut book, now);
    used(&mut book, answer(&["192.0.2.1", "192.0.2.2", "2001:db8::1"], 0), now);
    book.try_another(NAME, ip("192.0.2.2"), |ip| ip.is_ipv6());
    cache.save(book.take_changes().expect("changes")).expect("saved");
    assert_eq!(book.take_changes(), None, "nothing new");
    let again = Book::remembering(cache.load());
    let in_use = |book: &Book| book.in_use().map(|(_, used)| used).next();
    assert_eq!(in_use(&again), in_use(&book));
    assert_eq!(in_use(&again).and_then(|used| used.iter().next()), Some(ip("2001:db8::1")));
    assert!(again.has_choice(NAME));

    std::fs::write(folder.path().join("a.names.json"), "[1").expect("written");
    assert!(cache.load().is_empty());
    cache.remove().and_then(|()| cache.remove()).expect("removed");
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0);
}
