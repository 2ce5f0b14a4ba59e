//! The limits of plans through a real Envoy with `envoy/plain/limits.yaml`: by the name of the plan in Envoy itself,
//! and by its number at a rate-limit service.

use crate::support::ask::KEY_HEADER;
use crate::support::envoy::Envoy;
use crate::support::rate_limit::{Asked, RateLimits};
use crate::support::world::quick_hash;
use crate::support::{Ask, PATIENCE, Server, World, eventually};

/// Creates a tenant with a key and, if it is named, a plan.
fn tenant_with(world: &World, name: &str, plan: Option<&str>) -> (String, String) {
    let id = world.db.json(&["tenant", "create", name])["id"].as_str().expect("an id").to_owned();
    if let Some(plan) = plan {
        world.db.json(&["tenant", "update", &id, "--plan", plan]);
    }
    let key = world.db.json(&["key", "create", &id]);
    let [key_id, text] = ["id", "key"].map(|field| key[field].as_str().expect("a text").to_owned());
    world.db.sql(&format!("UPDATE api_keys SET hashed_key = '{}' WHERE id = '{key_id}'", quick_hash(&text)));
    (id, text)
}

fn statuses(envoy: &Envoy, path: &str, key: Option<&str>, times: usize) -> Vec<u16> {
    let headers: Vec<_> = key.iter().map(|key| (KEY_HEADER, *key)).collect();
    (0..times).map(|_| envoy.send("GET", path, &headers).page.status).collect()
}

fn asked(about: &str, limit: Option<&str>) -> Asked {
    Asked { about: format!("tenantgate: tenant_id={about}"), limit: limit.map(str::to_owned) }
}

#[test]
fn the_number_of_a_plan_is_the_limit_of_the_service() {
    let world = World::somewhere();
    for (plan, limit) in [("none", "0/DAY"), ("three", "3/MINUTE"), ("most", "4294967295/YEAR")] {
        world.db.json(&["plan", "create", plan, "--request-limit", limit]);
    }
    world.db.json(&["plan", "create", "silent", "--total-limit", "5/DAY"]);
    world.db.json(&["route", "add", "--path", "/v1/open", "--mode", "optional"]);
    let plans = ["none", "three", "most", "silent"].map(|plan| tenant_with(&world, plan, Some(plan)));
    let free = tenant_with(&world, "free", None);
    let server = Server::on(&world.db).start();
    let limits = RateLimits::start(Some(2));
    let Some(envoy) = limits.behind(&server).start() else { return };
    let [none, three, most, silent] = &plans;
    assert_eq!(statuses(&envoy, "/v1", Some(&none.1), 2), [429, 429], "0 lets nothing pass");
    assert_eq!(limits.asked(), vec![asked(&none.0, Some("0/DAY")); 2]);
    assert_eq!(statuses(&envoy, "/v1", Some(&three.1), 4), [200, 200, 200, 429]);
    assert_eq!(limits.asked(), vec![asked(&three.0, Some("3/MINUTE")); 4]);
    assert_eq!(statuses(&envoy, "/v1", Some(&most.1), 4), [200; 4]);
    assert_eq!(limits.asked(), vec![asked(&most.0, Some("4294967295/YEAR")); 4], "it does not wrap");
    for (id, key) in [silent, &free] {
        assert_eq!(statuses(&envoy, "/v1", Some(key), 3), [200, 200, 429], "the service's own limit holds");
        assert_eq!(limits.asked(), vec![asked(id, None); 3]);
    }
    // What has no tenant has one bucket of its own, whether or not it came with a key.
    assert_eq!(statuses(&envoy, "/docs", Some(&most.1), 1), [200]);
    assert_eq!(statuses(&envoy, "/v1/open", None, 2), [200, 429]);
    assert_eq!(limits.asked(), vec![asked("anonymous", None); 3]);
    assert_eq!(statuses(&envoy, "/v1", Some(&most.1), 1), [200], "that of a tenant is another one");
    limits.asked();
    // What tenantgate rejects counts nowhere.
    assert_eq!(statuses(&envoy, "/v1", Some("llmk_nobody_12345678"), 1), [401]);
    assert_eq!(limits.asked(), []);
    limits.next_window();
    assert_eq!(statuses(&envoy, "/v1", Some(&three.1), 4), [200, 200, 200, 429]);
}

#[test]
fn every_limit_that_a_plan_can_have_reaches_the_service_as_it_is() {
    let world = World::somewhere();
    world.db.json(&["plan", "create", "one", "--request-limit", "7/DAY"]);
    let (id, key) = tenant_with(&world, "one", Some("one"));
    let server = Server::on(&world.db).start();
    let limits = RateLimits::start(None);
    let Some(envoy) = limits.behind(&server).start() else { return };
    for unit in ["SECOND", "MINUTE", "HOUR", "DAY", "MONTH", "YEAR"] {
        for number in ["0", "1", "4294967295"] {
            let limit = format!("{number}/{unit}");
            world.db.json(&["plan", "update", "one", "--request-limit", &limit]);
            eventually(&format!("the service gets {limit}"), PATIENCE, || {
                statuses(&envoy, "/v1", Some(&key), 1);
                let seen = limits.asked();
                if seen == [asked(&id, Some(&limit))] { Ok(()) } else { Err(seen) }
            });
        }
    }
    world.db.json(&["plan", "update", "one", "--no-request-limit"]);
    eventually("the service gets no limit", PATIENCE, || {
        statuses(&envoy, "/v1", Some(&key), 1);
        let seen = limits.asked();
        if seen == [asked(&id, None)] { Ok(()) } else { Err(seen) }
    });
    // What Envoy would read as another number, or not at all, cannot be written, not even past the commands.
    for limit in
        ["-1/DAY", "4294967296/DAY", "5e9/DAY", "5.7/DAY", "5/day", "5/WEEK", "5", "/DAY", "05/DAY", "5/DAY "]
    {
        let refusal = world.db.refuses(&format!("UPDATE tenantgate_plan SET request_limit = '{limit}'"));
        assert!(refusal.to_lowercase().contains("constraint"), "{limit}: {refusal}");
        world.db.cli(&["plan", "update", "one", &format!("--request-limit={limit}")]).usage();
    }
}

#[test]
fn envoy_itself_limits_each_tenant_by_the_name_of_its_plan() {
    let world = World::somewhere();
    world.db.json(&["plan", "create", "gold"]);
    world.db.json(&["plan", "create", "other"]);
    world.db.json(&["route", "add", "--path", "/v1/open", "--mode", "optional"]);
    let [one, two] = ["one", "two"].map(|name| tenant_with(&world, name, Some("gold")).1);
    let [plain, other] = [tenant_with(&world, "plain", None).1, tenant_with(&world, "more", Some("other")).1];
    let server = Server::on(&world.db).start();
    let limits = RateLimits::start(None);
    // An hour, so that nothing is filled up meanwhile.
    let bucket = |tokens: u16, seconds: u16| {
        format!("{{max_tokens: {tokens}, tokens_per_fill: {tokens}, fill_interval: {seconds}s}}")
    };
    let sizes = [(500, 60, 4), (20, 60, 2), (60, 60, 3), (10_000, 1, 5)];
    let plan_file = sizes.iter().fold(limits.behind(&server), |file, (tokens, seconds, small)| {
        file.with(&bucket(*tokens, *seconds), &bucket(*small, 3600))
    });
    let Some(envoy) = plan_file.start() else { return };
    let passed = |path: &str, key: Option<&str>| {
        let seen = statuses(&envoy, path, key, 6);
        let passed = seen.iter().take_while(|status| **status == 200).count();
        assert!(seen[passed..].iter().all(|status| *status == 429), "{seen:?}");
        passed
    };
    assert_eq!((passed("/v1", Some(&one)), passed("/v1", Some(&two))), (4, 4), "a bucket for each tenant");
    assert_eq!(passed("/v1", Some(&plain)), 3, "a tenant without a plan");
    assert_eq!(passed("/v1", Some(&other)), 5, "a plan that the file does not name");
    assert_eq!((passed("/docs", None), passed("/v1/open", None)), (2, 0), "one bucket without a tenant");
    assert_eq!(server.row(Ask::with_key(&one)), "200 ok");
    let answer = envoy.send("GET", "/v1", &[(KEY_HEADER, &one)]).page;
    assert_eq!(
        (answer.status, answer.headers.get("x-ratelimit-remaining").map(String::as_str)),
        (429, Some("0"))
    );
}
