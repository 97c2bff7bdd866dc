// The token form of the sign-in page.
import { signIn } from "./sign_in.js";

signIn(document.getElementById("login"), () => location.assign("/"));
