//! Names of people, groups and channels in their canonical form.
//!
//! WhatsApp names a person by phone number (`…@s.whatsapp.net`) or by LID (`…@lid`), and the same message may come under
//! either. The LID is canonical where it is known: from the stanza itself, else from the map that the library keeps.

use shared::wire::outbox::Party;
use wacore_binary::Jid;
use whatsapp_rust::Client;

/// The map of names could not be read.
#[derive(Debug, thiserror::Error)]
#[error("the map of phone numbers and LIDs can't be read")]
pub struct UnreadableMap;

/// Who `jid` is. `alt` is the other name that came with it.
///
/// # Errors
/// [`UnreadableMap`] if the store can't be read.
pub async fn party(client: &Client, jid: &Jid, alt: Option<&Jid>) -> Result<Party, UnreadableMap> {
    let other = match alt.filter(|alt| (alt.is_lid() && jid.is_pn()) || (alt.is_pn() && jid.is_lid())) {
        Some(alt) => Some(alt.to_non_ad()),
        None => other_name(client, jid).await?,
    };
    Ok(named(jid, other))
}

async fn other_name(client: &Client, jid: &Jid) -> Result<Option<Jid>, UnreadableMap> {
    if !jid.is_lid() && !jid.is_pn() {
        return Ok(None);
    }
    let own = (client.pn(), client.lid());
    if let (Some(pn), Some(lid)) = &own {
        if jid.is_pn() && jid.user == pn.user {
            return Ok(Some(lid.to_non_ad()));
        }
        if jid.is_lid() && jid.user == lid.user {
            return Ok(Some(pn.to_non_ad()));
        }
    }
    let entry = client.get_lid_pn_entry(jid).await.map_err(|_| UnreadableMap)?;
    Ok(entry.map(|entry| if jid.is_lid() { Jid::pn(&*entry.phone_number) } else { Jid::lid(&*entry.lid) }))
}

fn named(jid: &Jid, other: Option<Jid>) -> Party {
    let name = jid.to_non_ad();
    let (pn, lid) = if name.is_lid() {
        (other, Some(name.clone()))
    } else if name.is_pn() {
        (Some(name.clone()), other)
    } else {
        (None, None)
    };
    Party {
        id: lid.as_ref().unwrap_or(&name).to_string(),
        pn: pn.map(|jid| jid.to_string()),
        lid: lid.map(|jid| jid.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_has_one_identity_under_either_name() {
        let (pn, lid) = (Jid::pn_device("15550001234", 3), Jid::lid_device("100000012345", 7));
        let by_number = named(&pn, Some(lid.to_non_ad()));
        let by_lid = named(&lid, Some(pn.to_non_ad()));
        assert!(by_number == by_lid);
        assert_eq!(by_lid.id, "100000012345@lid");
        assert_eq!(by_lid.pn.as_deref(), Some("15550001234@s.whatsapp.net"));
    }

    #[test]
    fn without_a_lid_the_number_stands_and_a_group_is_itself() {
        assert_eq!(named(&Jid::pn_device("15550001234", 3), None).id, "15550001234@s.whatsapp.net");
        let group: Jid = "120363000000000000@g.us".parse().unwrap();
        let party = named(&group, None);
        assert_eq!((party.id.as_str(), party.pn, party.lid), ("120363000000000000@g.us", None, None));
    }
}
