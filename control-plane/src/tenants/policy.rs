//! Who may give which role to whom: pure functions.

use crate::auth::Role;

/// Why a role can't be given or taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RoleRefused {
    /// It is the owner's, which only changes hands by an offer that is accepted.
    Owner,
    /// It stands above the one who wants to change it.
    AboveOneself,
}

/// Whether `actor` may invite somebody as `wanted`.
pub(super) fn may_invite(actor: Role, wanted: Role) -> Result<(), RoleRefused> {
    may_change(actor, wanted, wanted)
}

/// Whether `actor` may make somebody who is `present` a `wanted`. To remove somebody, both are what they are.
pub(super) fn may_change(actor: Role, present: Role, wanted: Role) -> Result<(), RoleRefused> {
    if present == Role::Owner || wanted == Role::Owner {
        return Err(RoleRefused::Owner);
    }
    if present > actor || wanted > actor {
        return Err(RoleRefused::AboveOneself);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn roles() -> impl Strategy<Value = Role> {
        prop::sample::select(Role::ALL.to_vec())
    }

    proptest! {
        #[test]
        fn no_chain_of_changes_makes_or_unmakes_an_owner_or_lifts_anybody_above_those_who_acted(
            mut roles_of in prop::collection::vec(roles().prop_filter("others", |role| *role != Role::Owner), 1..6),
            changes in prop::collection::vec((0usize..6, 0usize..6, roles()), 0..60),
        ) {
            let highest = roles_of.iter().copied().max().unwrap();
            roles_of.insert(0, Role::Owner);
            for (actor, subject, wanted) in changes {
                let (actor, subject) = (actor % roles_of.len(), subject % roles_of.len());
                // The owner acts in other tests: here nobody may climb by their own.
                if actor != 0 && may_change(roles_of[actor], roles_of[subject], wanted).is_ok() {
                    roles_of[subject] = wanted;
                }
                prop_assert_eq!(roles_of[0], Role::Owner);
                prop_assert!(roles_of[1..].iter().all(|role| *role <= highest));
            }
        }

        #[test]
        fn the_owner_may_give_and_take_all_other_roles(present in roles(), wanted in roles()) {
            let others = present != Role::Owner && wanted != Role::Owner;
            prop_assert_eq!(may_change(Role::Owner, present, wanted).is_ok(), others);
            prop_assert_eq!(may_invite(Role::Owner, wanted).is_ok(), wanted != Role::Owner);
        }
    }
}
